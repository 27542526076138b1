"""Pictures of what a NOAH head attends to, logged to W&B during training."""

from collections.abc import Iterator
from contextlib import contextmanager

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from noah_lightning.analysis.attention_pictures import draw_attention
from noah_lightning.data.datamodule import ImageDataModule
from noah_lightning.distributed.environment import rank
from noah_lightning.models.classifier import Classifier
from noah_lightning.task import ClassificationTask


class AttentionPicture(Callback):
    """Logs ``val/attention`` to W&B: a few validation images under the attention of their most probable class.

    Only rank 0 draws, without any collective. The modules' modes and the random number generators are restored, so
    a run with pictures trains exactly as one without.

    Args:
        logger: W&B logger.
        data: the same images, evenly spaced over its validation set, are drawn every time.
        every: epochs between two pictures; the last epoch always has one.
        count: number of images.
    """

    def __init__(self, logger: WandbLogger, data: ImageDataModule, every: int, count: int = 6) -> None:
        self.logger, self.data, self.every, self.count = logger, data, every, count

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, ClassificationTask)
        epoch = trainer.current_epoch + 1
        if rank() > 0 or (epoch % self.every and epoch != trainer.max_epochs):
            return
        model, precision = pl_module.model, trainer.precision_plugin
        assert isinstance(model, Classifier)
        with isolate_rng(), evaluating(model), torch.no_grad():
            images, labels = self._images()
            normalized = precision.convert_input(self.data.on_device.normalize(images.to(pl_module.device)))
            with precision.forward_context():
                guesses, attention = attention_of_guess(model, normalized)
            picture = draw_attention(images, labels, guesses.tolist(), self.data.class_names, attention.float().cpu())
        step = trainer.global_step - 1  # that of the epoch's metrics
        self.logger.log_image("val/attention", [picture], step=step, caption=[f"epoch {epoch}"])

    def _images(self) -> tuple[Tensor, list[int]]:
        """uint8 (count, 3, H, W), evenly spaced over the validation set, and their labels."""
        dataset = self.data.val_dataset
        assert dataset is not None
        count = min(self.count, len(dataset))
        samples = [dataset[i * len(dataset) // count] for i in range(count)]
        return torch.stack([image for image, _ in samples]), [int(label) for _, label in samples]


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
