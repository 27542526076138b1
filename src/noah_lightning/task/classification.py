"""Classification task: training and validation of any classifier, as a Lightning module, with mixup and CutMix."""

from typing import Any, Self

import lightning.pytorch as pl
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from timm.data.mixup import Mixup
from torch import Tensor, nn

from noah_lightning.config.schema import MixingSettings, OptimizerSettings, ScheduleSettings
from noah_lightning.distributed.collectives import gather_floats
from noah_lightning.errors import ConfigError
from noah_lightning.task.losses import PADDING, cross_entropy
from noah_lightning.task.metrics import Predictions
from noah_lightning.task.objective import Objective, Score, single_label
from noah_lightning.task.optimizer import StepGuard, WeightAverage, learning_rate, make_optimizer

Batch = tuple[Tensor, Tensor]  # normalized images (B, 3, H, W), labels (B,), or (B, K) of multi-label data


class BatchMixing(Mixup):
    """timm's mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899): image i is mixed with image B - 1 - i.

    There is one draw per batch, from NumPy's global generator.
    """

    def __init__(self, settings: MixingSettings, num_classes: int, label_smoothing: float) -> None:
        shares = {"mixup_alpha": settings.mixup, "cutmix_alpha": settings.cutmix, "switch_prob": settings.switch}
        super().__init__(**shares, label_smoothing=label_smoothing, num_classes=num_classes)

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mixed images (B, 3, H, W) and soft targets (B, K) from images and labels (B,), which are not changed."""
        check_even(len(images))
        return super().__call__(images.clone(), labels)  # timm mixes in place


def check_even(images: int) -> None:
    """Raise ConfigError for an odd number of images in a mixed batch: the one in the middle has no partner."""
    if images % 2:
        raise ConfigError(
            f"recipe.mixing needs an even number of images per batch, got {images}; change recipe.batch_size, "
            "or set recipe.mixing.mixup=0 recipe.mixing.cutmix=0"
        )


class ClassificationTask(pl.LightningModule):
    """Trains and validates any ``nn.Module`` that maps images (B, 3, H, W) to logits (B, K).

    Logs ``train/loss_step`` and ``train/lr`` every few steps, and per epoch ``train/loss``, ``train/top1``,
    ``val/loss``, ``val/top1``, ``val/top5`` (percent) and ``val/images``, the number of images validated; with an
    average of the weights also ``val/ema_loss``, ``val/ema_top1`` and ``val/ema_top5``. Multi-label tasks have
    ``val/map`` and ``val/ema_map`` instead of the accuracies.

    Args:
        model: the classifier.
        optimizer, schedule: settings, with the learning rate for the actual batch size.
        label_smoothing: share of the target spread over all classes in training; validation uses none.
        mixing: of training batches. Training accuracy counts against each image's own label, although part of the
            image shows another.
        num_classes: K; needed for mixing only.
        ema: decay per optimizer step of an average of the weights, which is validated together with the model.
        channels_last: memory format of model and images, preferred by convolutions on GPUs.
        trained: the part of a frozen model that is trained; all else stays in evaluation mode.
        nonfinite: ``skip`` optimizer steps whose loss or gradient is not finite, or ``stop``: leave it to
            :class:`~noah_lightning.callbacks.failures.NonFiniteCheck`.
        objective: loss and score; by default cross-entropy with ``label_smoothing``, and accuracy.
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
        trained: nn.Module | None = None,
        objective: Objective | None = None,
    ) -> None:
        super().__init__()
        self.memory_format = torch.channels_last if channels_last else torch.preserve_format
        self.model = model.to(memory_format=self.memory_format)
        self.optimizer_settings, self.schedule = optimizer, schedule
        self.mixing: BatchMixing | None = None
        if mixing is not None and mixing.on:
            assert num_classes is not None, "soft targets are as wide as there are classes"
            self.mixing = BatchMixing(mixing, num_classes, label_smoothing)
            label_smoothing = 0.0  # its targets are smoothed already
        self.objective = objective or single_label(cross_entropy(label_smoothing))
        self.rate, self.loss = 0.0, torch.tensor(0.0)  # of the latest batch
        self.guard = StepGuard() if nonfinite == "skip" else None
        self.ema = None if ema is None else WeightAverage(model, ema)
        self.train_score = self.objective.training()
        self.val_score, self.ema_score = self.objective.validation(), self.objective.validation()
        self.val_predictions = Predictions(self.objective.predict)
        # Of the latest complete validation; predicted are labels and classes (images,), or multi-label ones and
        # logits (images, K).
        self.validated: Score | None = None
        self.ema_validated: Score | None = None
        self.predicted: tuple[Tensor, Tensor] | None = None
        self._trained = (trained,)  # in a tuple, as it is a part of the model already
        if trained is not None:
            self.train()

    def train(self, mode: bool = True) -> Self:
        """Training or evaluation mode; what is frozen stays in evaluation mode."""
        super().train(mode)
        (trained,) = self._trained
        if trained is not None:
            self.model.eval()
            trained.train(mode)
        return self

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
        targets = labels
        if self.mixing is not None:
            images, targets = self.mixing(images, labels)
        logits = self(images)
        loss = self.objective.loss(logits, targets)
        self.loss = counted = loss.detach()
        if self.guard:  # a single NaN would make the mean of the epoch NaN
            labels = torch.where(self.loss.isfinite(), labels, PADDING)
            counted = self.loss.nan_to_num(0, 0, 0)
        self.train_score.update(logits, labels, counted * len(labels))
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.guard:
            self.guard.check(self.model, self.trainer)

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
        train = self.train_score.compute()
        metrics = {f"train/{name}": getattr(train, name) for name in self.objective.train_metrics}
        self._log_now(metrics, self.trainer.global_step - 1)
        self.train_score.reset()

    def _log_now(self, metrics: dict[str, float], step: int) -> None:
        """Log without Lightning's ``log``, which takes half its time in a step and writes after the checkpoint."""
        for logger in self.trainer.loggers:
            logger.log_metrics({**metrics, "epoch": self.current_epoch}, step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the training counts of the epoch, of every process, to resume within an epoch (a collective)."""
        checkpoint["train_counts"] = gather_floats(self.train_score.counts(), self.trainer)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        counts = checkpoint["train_counts"]
        if len(counts) == self.trainer.world_size:  # else the epoch restarts
            self.train_score.set_counts(counts[self.global_rank])

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        images, labels = batch[0].to(memory_format=self.memory_format), batch[1]
        logits = self.model(images)
        self.val_score.update(logits, labels, self.objective.loss_sum(logits, labels))
        self.val_predictions.update(logits, labels)
        if self.ema is not None:
            logits = self.ema.module(images)
            self.ema_score.update(logits, labels, self.objective.loss_sum(logits, labels))

    def on_validation_epoch_end(self) -> None:
        """Compute the metrics over all processes (torchmetrics' collectives)."""
        val, ema = self.val_score.compute(), self.ema_score.compute() if self.ema is not None else None
        labels, predicted = self.val_predictions.compute()
        for metric in (self.val_score, self.ema_score, self.val_predictions):
            metric.reset()
        values = val.metrics() | {"images": val.images}
        self.log_dict({f"val/{name}": value for name, value in values.items()})
        if ema is not None:
            self.log_dict({f"val/ema_{name}": value for name, value in ema.metrics().items()})
        if not self.trainer.sanity_checking:  # a few batches before training
            self.validated, self.ema_validated = val, ema
            self.predicted = torch.atleast_1d(labels), torch.atleast_1d(predicted)  # torchmetrics makes one a scalar
