"""The training task: cross-entropy over a finished classifier."""

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from noah_lightning.errors import ConfigError
from noah_lightning.task.accuracy import Accuracy, AccuracyCounter
from noah_lightning.task.optimizer import OptimizerSettings, make_optimizer
from noah_lightning.task.schedule import ScheduleSettings, learning_rate

Batch = tuple[Tensor, Tensor]  # normalised images (B, 3, H, W), labels (B,)


class ClassificationTask(pl.LightningModule):
    """Trains and validates any ``nn.Module`` that maps images (B, 3, H, W) to logits (B, K).

    Logs ``train/loss_step`` and ``train/lr`` every few steps, and per epoch ``train/loss``, ``train/top1``,
    ``val/loss``, ``val/top1``, ``val/top5`` (percent) and ``val/images``, the number of images validated.

    Args:
        model: the classifier.
        optimizer: settings of the optimiser.
        schedule: settings of the learning rate.
        label_smoothing: share of the target spread over all classes while training; validation uses none.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerSettings,
        schedule: ScheduleSettings,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if not isinstance(label_smoothing, int | float) or not 0 <= label_smoothing < 1:
            raise ConfigError(f"recipe.label_smoothing={label_smoothing!r} must be at least 0 and below 1")
        self.model = model
        self.optimizer_settings = optimizer
        self.schedule = schedule
        self.label_smoothing = label_smoothing
        self.train_accuracy = AccuracyCounter()
        self.val_accuracy = AccuracyCounter()
        self.validated: Accuracy | None = None  # the latest whole validation

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return make_optimizer(self.model, self.optimizer_settings)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Set the learning rate for this moment. A function of the clock alone, it needs nothing to resume."""
        time = self.current_epoch + batch_idx / self.trainer.num_training_batches
        epochs = self.trainer.max_epochs
        assert epochs is not None
        rate = learning_rate(time, self.optimizer_settings.lr, epochs, self.schedule)
        for optimizer in self.trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        self.log("train/lr", torch.tensor(rate))  # Lightning would copy a number to the device and wait for it

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, labels = batch
        logits = self(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        self.train_accuracy.update(logits, labels, loss)
        self.log("train/loss_step", loss)
        return loss

    def on_train_epoch_end(self) -> None:
        train = self.train_accuracy.compute()
        self.log_dict({"train/loss": train.loss, "train/top1": train.top1})
        self.train_accuracy.reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        images, labels = batch
        logits = self(images)
        self.val_accuracy.update(logits, labels, F.cross_entropy(logits, labels))

    def on_validation_epoch_end(self) -> None:
        val = self.val_accuracy.compute()
        self.val_accuracy.reset()
        if not self.trainer.sanity_checking:  # a few batches before training
            self.validated = val
        self.log_dict({"val/loss": val.loss, "val/top1": val.top1, "val/top5": val.top5, "val/images": val.images})
