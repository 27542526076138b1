"""Benchmark of training steps, compared with a bare PyTorch loop."""

import copy
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.noise import NoiseDataModule
from benchmarks.report import Report, make_parser, run
from benchmarks.timing import ratio, spread, wait_for_device
from noah_lightning.analysis.tables import Table
from noah_lightning.callbacks.progress import EpochReport
from noah_lightning.config.compose import compose_config
from noah_lightning.config.schema import OptimizerSettings
from noah_lightning.distributed.signals import StopRequest
from noah_lightning.loggers.factory import close_loggers, make_loggers
from noah_lightning.models.classifier import create_model
from noah_lightning.task import make_optimizer
from noah_lightning.train import make_callbacks, make_task, make_trainer

CLASSES, BATCH = 100, 32
BARE, OURS = "bare", "ours"
# As in `noah train recipe=resnet`, with a small learning rate because the labels are random.
SETTINGS = ["model=resnet18", "head=gap", "data=digits", f"data.num_classes={CLASSES}", "recipe=resnet"]
SETTINGS += [f"recipe.batch_size={BATCH}", "recipe.optimizer.lr=1e-3", "recipe.optimizer.lr_batch=null"]
SETTINGS += ["trainer.max_epochs=1", "trainer.num_sanity_val_steps=0"]


@dataclass(frozen=True)
class Case:
    """A model, the size of its images in pixels, and the number of steps per turn."""

    name: str
    make: Callable[[], nn.Module]
    size: int
    steps: int


CASES = (
    Case("ResNet-18", lambda: create_model("resnet18", num_classes=CLASSES), 64, 5),
    # Almost no arithmetic, so this measures the overhead of Python.
    Case("one linear layer", lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, CLASSES)), 8, 200),
)


@dataclass(frozen=True)
class Comparison:
    """Seconds of each turn, and both models at the end, which must be identical."""

    seconds: dict[str, list[float]]
    models: dict[str, nn.Module]


def bench_step(rounds: int) -> Report:
    """Train the same model on the same batches in both ways, alternately, with the same optimizer.

    Ours is a run of Lightning's trainer with the task, data module, callbacks and logger of ``noah train``; all that
    happens between two batches is timed. Validation and checkpoints follow after the timed turns.

    Args:
        rounds: number of timed turns of each way, after one for warm-up.
    """
    figures = [_figures(case, compare(case, rounds).seconds) for case in CASES]
    columns = ("model", "bare ms/step", "ours ms/step", "ours - bare", "ours / bare")
    steps = " and ".join(str(case.steps) for case in CASES)
    what = f"batches of {BATCH}, {rounds} rounds of {steps} steps; medians (quartiles)"
    return Report("step", Table(columns, [_row(figure) for figure in figures], left=("model",)), figures, [what])


def compare(case: Case, rounds: int) -> Comparison:
    """Train one model in both ways, alternately."""
    config = compose_config([*SETTINGS])
    torch.manual_seed(0)
    ours = case.make()
    bare = copy.deepcopy(ours)
    data = NoiseDataModule(case.size, BATCH, (rounds + 1) * case.steps + 1, CLASSES)
    data.setup("fit")
    with TemporaryDirectory(prefix="noah_bench_") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's: few workers, a short epoch
        task = make_task(config, ours, BATCH)
        loggers = make_loggers(config, Path(folder))
        callbacks = make_callbacks(config, Path(folder), loggers, EpochReport(), data, StopRequest())
        trainer = make_trainer(config, Path(folder), logger=loggers, callbacks=callbacks)
        bare.to(trainer.strategy.root_device)
        loop = bare_loop(bare, task.optimizer_settings, data, iter(data.loader()))
        data.given_batches = turns = Turns(iter(data.loader()), case.steps, rounds, lambda: next(loop))
        trainer.fit(task, datamodule=data)
        close_loggers(loggers, None)
    return Comparison(turns.seconds, {OURS: ours, BARE: bare})


def bare_loop(
    model: nn.Module, settings: OptimizerSettings, data: NoiseDataModule, batches: Iterator[Any]
) -> Iterator[None]:
    """A minimal training loop, one step per ``next``."""
    optimizer = make_optimizer(model.train(), settings)
    device = next(model.parameters()).device
    for images, labels in batches:
        images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(data.on_device.normalize(images)), labels)
        loss.backward()
        optimizer.step()
        yield


class Turns:
    """Batches for our trainer; after each turn of it, the bare loop has its turn."""

    def __init__(self, batches: Iterator[Any], steps: int, rounds: int, bare_step: Callable[[], None]) -> None:
        self.batches, self.steps, self.rounds, self.bare_step = batches, steps, rounds, bare_step
        self.seconds: dict[str, list[float]] = {BARE: [], OURS: []}

    def __len__(self) -> int:
        return (self.rounds + 1) * self.steps + 1

    def __iter__(self) -> Iterator[Any]:
        for turn in range(self.rounds + 1):
            begin = time.perf_counter()
            for _ in range(self.steps):
                yield next(self.batches)
            wait_for_device()
            change = time.perf_counter()
            for _ in range(self.steps):
                self.bare_step()
            wait_for_device()
            if turn > 0:  # the first one is for warm-up
                self.seconds[OURS].append(change - begin)
                self.seconds[BARE].append(time.perf_counter() - change)
        self.bare_step()
        yield next(self.batches)  # so that the trainer returns after the last turn


def _figures(case: Case, seconds: dict[str, list[float]]) -> dict[str, Any]:
    per_step = {name: [each / case.steps for each in seconds[name]] for name in (BARE, OURS)}
    more = [ours - bare for ours, bare in zip(per_step[OURS], per_step[BARE], strict=True)]
    spreads = {
        "bare_seconds": spread(per_step[BARE]),
        "ours_seconds": spread(per_step[OURS]),
        "more_seconds": spread(more),
        "ratio": ratio(seconds, OURS, BARE),
    }
    figures: dict[str, Any] = {"model": case.name, "steps": case.steps}
    for key, one in spreads.items():
        figures |= {key: one.median, f"{key}_quartiles": [one.low, one.high]}
    return figures


def _row(figure: dict[str, Any]) -> tuple[str, ...]:
    def cell(key: str, scale: int, digits: int) -> str:
        median, low, high = (f"{scale * value:.{digits}f}" for value in (figure[key], *figure[f"{key}_quartiles"]))
        return f"{median} ({low}–{high})"

    times = [cell(key, 1000, 2) for key in ("bare_seconds", "ours_seconds", "more_seconds")]
    return (figure["model"], *times, cell("ratio", 1, 3))


def main() -> None:
    options = make_parser("Training steps compared with a bare PyTorch loop.").parse_args()
    run(lambda: bench_step(options.rounds), options.json)


if __name__ == "__main__":
    main()
