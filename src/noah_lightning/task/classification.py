"""The training task: cross-entropy over a finished classifier."""

from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn

from noah_lightning.distributed.collectives import of_every_process
from noah_lightning.errors import ConfigError
from noah_lightning.task.ema import WeightAverage
from noah_lightning.task.lr_schedule import ScheduleSettings, learning_rate
from noah_lightning.task.metrics import Accuracy, AccuracyCounter, Predictions
from noah_lightning.task.mixing import BatchMixing, MixingSettings
from noah_lightning.task.nonfinite import LossWatch, StepGuard
from noah_lightning.task.optimizer import OptimizerSettings, make_optimizer

Batch = tuple[Tensor, Tensor]  # normalised images (B, 3, H, W), labels (B,)
PADDING = -1  # label of what only fills up a validation batch, so that all processes have equally many


class ClassificationTask(pl.LightningModule):
    """Trains and validates any ``nn.Module`` that maps images (B, 3, H, W) to logits (B, K).

    Logs ``train/loss_step`` and ``train/lr`` every few steps, and per epoch ``train/loss``, ``train/top1``,
    ``val/loss``, ``val/top1``, ``val/top5`` (percent) and ``val/images``, the number of images validated; with an
    average of the weights also ``val/ema_loss``, ``val/ema_top1`` and ``val/ema_top5``.

    Args:
        model: the classifier.
        optimizer: settings of the optimiser, its rate for the batch at hand.
        schedule: settings of the learning rate.
        label_smoothing: share of the target spread over all classes while training; validation uses none.
        mixing: whether and how training batches are mixed; validation never is. Training accuracy then counts
            against each image's own label, although part of it shows another.
        num_classes: K; only mixing has to know it.
        ema: decay per optimiser step of an average of the weights, which is validated beside the model and never
            trained on; None for no average.
        channels_last: model and images keep the channels of a pixel side by side in memory, as GPUs' convolutions
            like it.
        nonfinite: at a loss or gradient that is not finite ``stop`` before more is saved, or ``skip`` the step.

    Raises:
        ConfigError: a value out of its range.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerSettings,
        schedule: ScheduleSettings,
        label_smoothing: float = 0.0,
        mixing: MixingSettings | None = None,
        num_classes: int | None = None,
        ema: float | None = None,
        channels_last: bool = False,
        nonfinite: str = "stop",
    ) -> None:
        super().__init__()
        if not isinstance(label_smoothing, int | float) or not 0 <= label_smoothing < 1:
            raise ConfigError(f"recipe.label_smoothing={label_smoothing!r} must be at least 0 and below 1")
        self.memory_format = torch.channels_last if channels_last else torch.preserve_format
        self.model = model.to(memory_format=self.memory_format)
        self.optimizer_settings = optimizer
        self.schedule = schedule
        self.label_smoothing = label_smoothing
        self.mixing: BatchMixing | None = None
        if mixing is not None and mixing.on:
            assert num_classes is not None, "soft targets are as wide as there are classes"
            self.mixing = BatchMixing(mixing, num_classes, label_smoothing)
        self.rate, self.loss = 0.0, torch.tensor(0.0)  # of the latest batch
        self.losses = LossWatch()
        self.guard = StepGuard() if nonfinite == "skip" else None
        self.train_accuracy = AccuracyCounter()
        self.val_accuracy = AccuracyCounter()
        self.val_predictions = Predictions()
        self.validated: Accuracy | None = None  # the latest whole validation
        self.predicted: tuple[Tensor, Tensor] | None = None  # its labels and first guesses (images,)
        self.ema = None if ema is None else WeightAverage(model, ema)
        self.ema_accuracy = AccuracyCounter()
        self.ema_validated: Accuracy | None = None

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return make_optimizer(self.model, self.optimizer_settings)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Set the learning rate for this moment. A function of the clock alone, it needs nothing to resume.

        All passes that make up an optimiser step have the rate of the first one.
        """
        first = batch_idx - batch_idx % self.trainer.accumulate_grad_batches
        if self.guard and first == batch_idx:
            self.guard.keep(self.model)
        time = self.current_epoch + first / self.trainer.num_training_batches
        epochs = self.trainer.max_epochs
        assert epochs is not None
        rate = learning_rate(time, self.optimizer_settings.lr, epochs, self.schedule)
        for optimizer in self.trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        self.rate = rate

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, labels = batch[0].to(memory_format=self.memory_format), batch[1]
        if self.mixing is None:
            logits = self(images)
            loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        else:
            images, targets = self.mixing(images, labels)  # the targets are smoothed already
            logits = self(images)
            loss = F.cross_entropy(logits, targets)
        self.loss = loss.detach()
        if self.guard is None:
            self.losses.see(batch_idx, self.loss)
            self.train_accuracy.update(logits, labels, self.loss * len(labels))
        else:  # one NaN would be the epoch's mean
            labels = torch.where(self.loss.isfinite(), labels, PADDING)
            self.train_accuracy.update(logits, labels, self.loss.nan_to_num(0, 0, 0) * len(labels))
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.guard:
            scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
            self.guard.look(self.model, scaled, self.current_epoch, self.trainer.fit_loop.batch_idx)

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer | LightningOptimizer, *args: Any
    ) -> None:
        """Lightning calls this once per step of the optimiser, however many batches that takes."""
        super().optimizer_step(epoch, batch_idx, optimizer, *args)
        optimizer.zero_grad()  # Lightning would keep the gradients until the next forward pass is over
        if self.ema is not None and not (self.guard and self.guard.left_out):
            self.ema.update(self.model)
        step = self.trainer.global_step  # this one; it counts those before
        if (step + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._write({"train/lr": self.rate, "train/loss_step": self.loss.item()}, step)
            self.losses.check(self)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        if batch_idx + 1 == self.trainer.num_training_batches:  # what follows keeps the best predictions
            self.losses.check_all(self)

    def on_train_epoch_end(self) -> None:
        train = self.train_accuracy.compute()
        self._write({"train/loss": train.loss, "train/top1": train.top1}, self.trainer.global_step - 1)
        self.train_accuracy.reset()

    def _write(self, metrics: dict[str, float], step: int) -> None:
        """Log at once. Lightning's own log costs as much as all else it does in a step, and writes only after the
        moment at which a checkpoint of the step is saved.
        """
        for logger in self.trainer.loggers:
            logger.log_metrics({**metrics, "epoch": self.current_epoch}, step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Each process's part of the epoch's sums, so that a run can go on in the middle of an epoch."""
        self.losses.check_all(self)  # nothing is saved that is not worth it
        checkpoint["train_counts"] = of_every_process(self.train_accuracy.counts(), self)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        counts = checkpoint["train_counts"]
        if len(counts) == self.trainer.world_size:  # else the epoch restarts
            self.train_accuracy.set_counts(counts[self.global_rank])

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        images, labels = batch[0].to(memory_format=self.memory_format), batch[1]
        logits = _validate(self.model, images, labels, self.val_accuracy)
        self.val_predictions.update(logits, labels)
        if self.ema is not None:
            _validate(self.ema.module, images, labels, self.ema_accuracy)

    def on_validation_epoch_end(self) -> None:
        val = self.val_accuracy.compute()
        self.val_accuracy.reset()
        self.log_dict({"val/loss": val.loss, "val/top1": val.top1, "val/top5": val.top5, "val/images": val.images})
        ema = None
        if self.ema is not None:
            ema = self.ema_accuracy.compute()
            self.ema_accuracy.reset()
            self.log_dict({"val/ema_loss": ema.loss, "val/ema_top1": ema.top1, "val/ema_top5": ema.top5})
        labels, guesses = self.val_predictions.compute()
        self.val_predictions.reset()
        if not self.trainer.sanity_checking:  # a few batches before training
            self.validated, self.ema_validated = val, ema
            self.predicted = labels.reshape(-1), guesses.reshape(-1)  # torchmetrics makes one image a scalar


def _validate(model: nn.Module, images: Tensor, labels: Tensor, counter: AccuracyCounter) -> Tensor:
    logits: Tensor = model(images)
    counter.update(logits, labels, F.cross_entropy(logits, labels, ignore_index=PADDING, reduction="sum"))
    return logits
