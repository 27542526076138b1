"""What came of each epoch, and which was the best."""

import time
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger

from noah_lightning.loggers.console import duration, log
from noah_lightning.task import ClassificationTask
from noah_lightning.task.metrics import Accuracy


@dataclass
class Best:
    """The best epoch so far, the first of equals: its validation accuracy, and its number counted from 1."""

    accuracy: Accuracy | None = None
    epoch: int = 0

    def see(self, accuracy: Accuracy, epoch: int) -> None:
        if self.accuracy is None or accuracy.correct > self.accuracy.correct:
            self.accuracy, self.epoch = accuracy, epoch

    def __str__(self) -> str:
        return f"epoch {self.epoch}  val {self.accuracy}"


class EpochReport(Callback):
    """A line per epoch, and the record of the best one.

    Attributes:
        best: the best epoch of the model.
        best_ema: the best epoch of the average of its weights, where there is one.
        train_seconds: time spent in training batches, loading included, validation not; of whole epochs.
        train_images: images trained on.
    """

    state_key = "EpochReport"  # in checkpoints

    def __init__(self) -> None:
        self.best = Best()
        self.best_ema = Best()
        self.train_seconds = 0.0
        self.train_images = 0
        self.run_seconds = 0.0  # with validation, before the run went on
        self.epoch_seconds = 0.0  # likewise of the epoch in whose middle it went on, without
        self._epoch_started: float | None = None

    @property
    def images_per_second(self) -> float:
        return self.train_images / self.train_seconds if self.train_seconds else 0.0

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint: plain values."""
        best = {name: [one.epoch, one.accuracy and tuple(one.accuracy)] for name, one in self._bests()}
        return {
            **best,
            "train_seconds": self.train_seconds,
            "train_images": self.train_images,
            "run_seconds": self._run_seconds(),
            "epoch_seconds": self._epoch_seconds(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, one in self._bests():
            one.epoch, counts = state_dict[name]
            one.accuracy = Accuracy(*counts) if counts else None
        self.train_seconds, self.train_images = state_dict["train_seconds"], state_dict["train_images"]
        self.run_seconds, self.epoch_seconds = state_dict["run_seconds"], state_dict["epoch_seconds"]

    def _run_seconds(self) -> float:
        return self.run_seconds + time.perf_counter() - self._fit_started

    def _epoch_seconds(self) -> float:
        """In training batches of this epoch, up to the latest; 0 between epochs."""
        if self._epoch_started is None:
            return 0.0
        return self.epoch_seconds + self._batch_ended - self._epoch_started

    def _bests(self) -> list[tuple[str, Best]]:
        return [("best", self.best), ("best_ema", self.best_ema)]

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._fit_started = time.perf_counter()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._epoch_started = time.perf_counter()  # for an epoch in whose middle the run goes on

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._epoch_started, self.epoch_seconds = time.perf_counter(), 0.0

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self._batch_ended = time.perf_counter()  # validation comes after the last one

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, ClassificationTask)
        train = pl_module.train_accuracy.compute()
        seconds = self._epoch_seconds()
        self.train_seconds += seconds
        self.train_images += train.images
        self._epoch_started = None
        epoch, epochs = trainer.current_epoch + 1, trainer.max_epochs or 1
        validated = ""
        if epoch % (trainer.check_val_every_n_epoch or 1) == 0:
            validated = self._see(pl_module, epoch)
        left = self._run_seconds() / epoch * (epochs - epoch)
        log.info(
            "epoch %d/%d  train loss %.4f top-1 %.2f %%  %s%.0f images/s  %s left",
            epoch,
            epochs,
            train.loss,
            train.top1,
            validated,
            train.images / seconds,
            duration(left),
        )

    def _see(self, task: ClassificationTask, epoch: int) -> str:
        """Note the validation of this epoch; returns its part of the line."""
        told = ""
        if task.validated:
            self.best.see(task.validated, epoch)
            told += f"val {task.validated}  "
        if task.ema_validated:
            self.best_ema.see(task.ema_validated, epoch)
            told += f"ema top-1 {task.ema_validated.top1:.3f} %  "
        return told


class EpochSpeed(Callback):
    """Logs ``train/images_per_second``, as the epoch's line on the console has it.

    Args:
        report: has measured the epoch when this is called, so it comes first in the trainer's list.
    """

    def __init__(self, report: EpochReport) -> None:
        self.report = report
        self.images, self.seconds = 0, 0.0  # up to the last epoch

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        images, seconds = self.report.train_images, self.report.train_seconds
        speed = {"train/images_per_second": (images - self.images) / (seconds - self.seconds)}
        for logger in trainer.loggers:
            if not isinstance(logger, CSVLogger):  # metrics.csv holds what comes out the same each time
                logger.log_metrics(speed, trainer.global_step - 1)
        self.images, self.seconds = images, seconds
