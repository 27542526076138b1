"""Pictures of what a head attends to, logged during training."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from noah_lightning.analysis.attention_pictures import draw_attention
from noah_lightning.data.datamodule import ImageDataModule
from noah_lightning.data.loader import Label
from noah_lightning.distributed.environment import rank
from noah_lightning.loggers.factory import log_picture
from noah_lightning.models.classifier import Classifier
from noah_lightning.task import ClassificationTask

Summary = TypeVar("Summary")

AT_ONCE = 8  # images explained at a time, as attention (B, N, K, L) is large for many classes


class AttentionCallback(Callback):
    """Base class of callbacks that explain the same validation images every time, evenly spaced over the set.

    Only rank 0 explains them, without any collective. The modules' modes and the random number generators are
    restored, so a run trains exactly as one without the callback.

    Args:
        data: whose validation images are explained.
        count: number of images; they stay in memory, as bytes.
    """

    def __init__(self, data: ImageDataModule, count: int) -> None:
        self.data, self.count = data, count
        self._samples: list[tuple[Tensor, Label]] = []

    def samples(self) -> tuple[Tensor, list[Label]]:
        """uint8 (count, 3, H, W) and their labels; fewer if the validation set has fewer."""
        dataset = self.data.val_dataset
        assert dataset is not None
        if not self._samples:
            count = min(self.count, len(dataset))
            self._samples = [dataset[i * len(dataset) // count] for i in range(count)]
        return torch.stack([image for image, _ in self._samples]), [label for _, label in self._samples]

    def explain(
        self, trainer: pl.Trainer, task: pl.LightningModule, summarize: Callable[[Classifier, Tensor], Summary]
    ) -> list[Summary]:
        """``summarize`` of the model and the normalized images, for :data:`AT_ONCE` images at a time."""
        assert isinstance(task, ClassificationTask)
        model, precision = task.model, trainer.precision_plugin
        assert isinstance(model, Classifier)
        summaries = []
        with isolate_rng(), evaluating(model), torch.no_grad():
            for images in self.samples()[0].split(AT_ONCE):
                normalized = precision.convert_input(self.data.on_device.normalize(images.to(task.device)))
                with precision.forward_context():
                    summaries.append(summarize(model, normalized))
        return summaries


class AttentionPicture(AttentionCallback):
    """Logs ``val/attention``: a few single-label validation images under the attention of their most probable class.

    Args:
        data, count: as of the base class.
        every: epochs between two pictures; the last epoch always has one.
    """

    def __init__(self, data: ImageDataModule, count: int, every: int) -> None:
        super().__init__(data, count)
        self.every = every

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        if rank() > 0 or (epoch % self.every and epoch != trainer.max_epochs):
            return
        guesses, attention = map(torch.cat, zip(*self.explain(trainer, pl_module, attention_of_guess), strict=True))
        images, labels = self.samples()
        classes, names = [int(label) for label in labels], self.data.class_names
        picture = draw_attention(images, classes, guesses.tolist(), names, attention.float().cpu())
        step = trainer.global_step - 1  # that of the epoch's metrics
        for logger in trainer.loggers:
            log_picture(logger, "val/attention", picture, step, caption=f"epoch {epoch}")


def attention_of_guess(model: Classifier, images: Tensor) -> tuple[Tensor, Tensor]:
    """The most probable class (B,) of normalized images, and its attention (B, L), averaged over the heads."""
    explanation = model.explain(images)
    guesses = explanation.logits.argmax(dim=1)
    attention = explanation.attention[torch.arange(len(images)), :, guesses]  # (B, N, K, L) -> (B, N, L)
    return guesses, attention.mean(dim=1)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode within this context; afterwards each module's mode is restored."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
