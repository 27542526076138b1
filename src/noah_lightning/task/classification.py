"""Classification task: cross-entropy over any classifier, as a Lightning module."""

from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn

from noah_lightning.config.schema import MixingSettings, OptimizerSettings, ScheduleSettings
from noah_lightning.distributed.collectives import gather_floats
from noah_lightning.task.lr_schedule import learning_rate
from noah_lightning.task.metrics import Accuracy, AccuracyCounter, Predictions
from noah_lightning.task.mixing import BatchMixing
from noah_lightning.task.optimizer import StepGuard, WeightAverage, make_optimizer

Batch = tuple[Tensor, Tensor]  # normalized images (B, 3, H, W), labels (B,)
PADDING = -1  # label of images that fill up a validation batch, so that all processes have as many batches


class ClassificationTask(pl.LightningModule):
    """Trains and validates any ``nn.Module`` that maps images (B, 3, H, W) to logits (B, K).

    Logs ``train/loss_step`` and ``train/lr`` every few steps, and per epoch ``train/loss``, ``train/top1``,
    ``val/loss``, ``val/top1``, ``val/top5`` (percent) and ``val/images``, the number of images validated; with an
    average of the weights also ``val/ema_loss``, ``val/ema_top1`` and ``val/ema_top5``.

    Args:
        model: the classifier.
        optimizer: optimizer settings, with the learning rate for the actual batch size.
        schedule: learning rate schedule.
        label_smoothing: share of the target spread over all classes in training; validation uses none.
        mixing: how training batches are mixed; validation batches never are. Training accuracy counts against each
            image's own label, although part of the image shows another.
        num_classes: K; needed for mixing only.
        ema: decay per optimizer step of an average of the weights, which is validated together with the model and
            never trained on; None for no average.
        channels_last: memory format of model and images, preferred by convolutions on GPUs.
        nonfinite: ``skip`` optimizer steps whose loss or gradient is not finite, or ``stop``: leave it to
            :class:`~noah_lightning.callbacks.failures.NonFiniteCheck`.
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
        self.guard = StepGuard() if nonfinite == "skip" else None
        self.train_accuracy = AccuracyCounter()
        self.val_accuracy = AccuracyCounter()
        self.val_predictions = Predictions()
        self.validated: Accuracy | None = None  # of the latest complete validation
        self.predicted: tuple[Tensor, Tensor] | None = None  # its labels and predicted classes (images,)
        self.ema = None if ema is None else WeightAverage(model, ema)
        self.ema_accuracy = AccuracyCounter()
        self.ema_validated: Accuracy | None = None

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return make_optimizer(self.model, self.optimizer_settings)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Set the learning rate, which depends on epoch and batch only, so that there is no state to resume.

        All accumulated batches of an optimizer step have the rate of the first one.
        """
        first = batch_idx - batch_idx % self.trainer.accumulate_grad_batches
        if self.guard and first == batch_idx:
            self.guard.keep_buffers(self.model)
        time = self.current_epoch + first / self.trainer.num_training_batches
        epochs = self.trainer.max_epochs
        assert epochs is not None
        self.rate = learning_rate(time, self.optimizer_settings.lr, epochs, self.schedule)
        for optimizer in self.trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.rate

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, labels = batch[0].to(memory_format=self.memory_format), batch[1]
        if self.mixing is None:
            logits = self(images)
            loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        else:
            images, targets = self.mixing(images, labels)  # the targets are smoothed already
            logits = self(images)
            loss = F.cross_entropy(logits, targets)
        self.loss = counted = loss.detach()
        if self.guard:  # a single NaN would make the mean of the epoch NaN
            labels = torch.where(self.loss.isfinite(), labels, PADDING)
            counted = self.loss.nan_to_num(0, 0, 0)
        self.train_accuracy.update(logits, labels, counted * len(labels))
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.guard:
            scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
            self.guard.check(self.model, scaled, self.current_epoch, self.trainer.fit_loop.batch_idx)

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer | LightningOptimizer, *args: Any
    ) -> None:
        """Forward, backward and update. Lightning calls this once per optimizer step, after accumulation."""
        super().optimizer_step(epoch, batch_idx, optimizer, *args)
        optimizer.zero_grad()  # Lightning would keep the gradients until the next forward pass is over
        if self.ema is not None and not (self.guard and self.guard.skipped):
            self.ema.update(self.model)
        step = self.trainer.global_step  # this one, as it counts those before
        if (step + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._log_now({"train/lr": self.rate, "train/loss_step": self.loss.item()}, step)

    def on_train_epoch_end(self) -> None:
        train = self.train_accuracy.compute()
        self._log_now({"train/loss": train.loss, "train/top1": train.top1}, self.trainer.global_step - 1)
        self.train_accuracy.reset()

    def _log_now(self, metrics: dict[str, float], step: int) -> None:
        """Log without Lightning's ``log``, which takes half its time in a step and writes after the checkpoint."""
        for logger in self.trainer.loggers:
            logger.log_metrics({**metrics, "epoch": self.current_epoch}, step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the training counts of the epoch, of every process, to resume within an epoch (a collective)."""
        checkpoint["train_counts"] = gather_floats(self.train_accuracy.counts(), self.trainer)

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
        """Compute the metrics over all processes (torchmetrics' collectives)."""
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
