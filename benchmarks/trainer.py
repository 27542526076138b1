"""A run of the trainer on random images in memory, in turns with something else."""

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.timing import wait_for_device
from noah_lightning.callbacks.progress import EpochReport
from noah_lightning.config.choices import DataSettings
from noah_lightning.config.compose import compose_config
from noah_lightning.data.datamodule import ImageDataModule, LabeledImages, Split
from noah_lightning.distributed.signals import StopRequest
from noah_lightning.loggers.factory import close_loggers, make_loggers
from noah_lightning.task import ClassificationTask
from noah_lightning.train import make_callbacks, make_task, make_trainer

CLASSES, BATCH = 100, 32
# As in `noah train recipe=resnet`, with a small learning rate because the labels are random.
SETTINGS = ["model=resnet18", "head=gap", "data=digits", f"data.num_classes={CLASSES}", "recipe=resnet"]
SETTINGS += [f"recipe.batch_size={BATCH}", "recipe.optimizer.lr=1e-3", "recipe.optimizer.lr_batch=null"]
SETTINGS += ["trainer.max_epochs=1", "trainer.num_sanity_val_steps=0"]


class NoiseImages:
    """``count`` random images, uint8 (3, S, S), of which ``different`` are distinct."""

    def __init__(self, size: int, count: int, classes: int, different: int = 256) -> None:
        self.classes = [str(number) for number in range(classes)]
        self.count = count
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randint(256, (different, 3, size, size), dtype=torch.uint8, generator=generator)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index % len(self.images)], index % len(self.classes)


class NoiseDataModule(ImageDataModule):
    """Random images for one epoch of ``batches`` training batches, loaded in the main process.

    Attributes:
        given_batches: if set, training batches to use instead of :meth:`loader`.
    """

    def __init__(self, size: int, batch: int, batches: int, classes: int) -> None:
        half = [0.5] * 3
        images = DataSettings(name="noise", num_classes=classes, mean=half, std=half, image_size=size)
        super().__init__(images.model_copy(update={"batch_size": batch, "num_workers": 0}))
        self.batches = batches
        self.given_batches: Any = None

    def build(self, split: Split) -> LabeledImages:
        batches = self.batches if split == "train" else 1
        return NoiseImages(self.image_size, batches * self.batch_size, self.num_classes)

    def loader(self) -> DataLoader[Any]:
        """The training batches, the same ones at each call."""
        return super().train_dataloader()

    def train_dataloader(self) -> Any:
        return self.loader() if self.given_batches is None else self.given_batches


class Turns:
    """Batches for the trainer; after each turn of ``steps`` of them, ``other`` has its turn.

    Attributes:
        seconds: of each turn of the trainer, which includes all that happens between two batches.
        other_seconds: of each turn of ``other``.
    """

    def __init__(self, batches: Iterator[Any], steps: int, rounds: int, other: Callable[[], object]) -> None:
        self.batches, self.steps, self.rounds, self.other = batches, steps, rounds, other
        self.seconds: list[float] = []
        self.other_seconds: list[float] = []

    def __len__(self) -> int:
        return (self.rounds + 1) * self.steps + 1

    def __iter__(self) -> Iterator[Any]:
        for turn in range(self.rounds + 1):
            begin = time.perf_counter()
            for _ in range(self.steps):
                yield next(self.batches)
            wait_for_device()
            change = time.perf_counter()
            self.other()
            wait_for_device()
            if turn > 0:  # the first one is for warm-up
                self.seconds.append(change - begin)
                self.other_seconds.append(time.perf_counter() - change)
        yield next(self.batches)  # so that the trainer returns after the last turn


@dataclass(frozen=True)
class Run:
    """Lightning's trainer with the task, data module, callbacks and loggers of ``noah train``."""

    folder: Path
    data: NoiseDataModule
    task: ClassificationTask
    trainer: pl.Trainer

    def in_turns(self, steps: int, rounds: int, other: Callable[[], object]) -> Turns:
        """Train for ``rounds`` timed turns of ``steps``, after one for warm-up, each followed by ``other``."""
        self.data.given_batches = turns = Turns(iter(self.data.loader()), steps, rounds, other)
        self.trainer.fit(self.task, datamodule=self.data)
        return turns


@contextmanager
def prepared_run(model: nn.Module, size: int, batches: int, *settings: str) -> Iterator[Run]:
    """A run of ``model`` on images of ``size`` pixels in a temporary folder."""
    config = compose_config([*SETTINGS, *settings])
    data = NoiseDataModule(size, BATCH, batches, CLASSES)
    data.setup("fit")
    with TemporaryDirectory(prefix="noah_bench_") as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's: few workers, a short epoch
        folder = Path(name)
        loggers = make_loggers(config, folder)
        callbacks = make_callbacks(config, folder, loggers, EpochReport(), data, StopRequest())
        trainer = make_trainer(config, folder, logger=loggers, callbacks=callbacks)
        yield Run(folder, data, make_task(config, model, BATCH), trainer)
        close_loggers(loggers, None)
