"""Progress of a training run: lines within an epoch, a line per epoch, and the best epoch."""

import time
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from noah_lightning.loggers.console import duration, log
from noah_lightning.loggers.metrics_csv import MetricsFile
from noah_lightning.task import ClassificationTask
from noah_lightning.task.metrics import Accuracy
from noah_lightning.task.objective import Score


@dataclass
class Best:
    """Validation score and number, counted from 1, of the best epoch so far; of equals, the first one."""

    score: Score | None = None
    epoch: int = 0

    def update(self, score: Score, epoch: int) -> None:
        if self.score is None or score.rating > self.score.rating:
            self.score, self.epoch = score, epoch

    def __str__(self) -> str:
        return f"epoch {self.epoch}  val {self.score}"


class EpochReport(Callback):
    """Logs a line and ``train/images_per_second`` per epoch, and keeps the best epoch.

    Without a progress bar, it also logs a line every ``trainer.log_every_n_steps`` batches.

    Args:
        score: class of the validation scores.

    Attributes:
        best, best_ema: best epoch of the model, and of the average of the weights.
        train_seconds: duration of the training batches of complete epochs, including loading, without validation.
        train_images: number of images trained on.
        startup_seconds, startup_images: of these, the first batch after each start and resume, which waits for
            DataLoader workers and compilation; images/s leave it out.
    """

    state_key = "EpochReport"  # in checkpoints

    def __init__(self, score: type[Score] = Accuracy) -> None:
        self.score = score
        self.best, self.best_ema = Best(), Best()
        self.train_seconds, self.train_images = 0.0, 0
        self.startup_seconds, self.startup_images = 0.0, 0.0
        self._run_before = 0.0  # seconds including validation, before the run was resumed
        self._epoch_before = 0.0  # seconds of training batches of the epoch within which the run was resumed
        self._epoch_started: float | None = None  # None between epochs
        self._batches = 0  # of this epoch since then
        self._first: float | None = None  # seconds of this process's first batch; 0 after its epoch

    @property
    def images_per_second(self) -> float:
        return _speed(self.train_images, self.train_seconds, self.startup_images, self.startup_seconds)

    def state_dict(self) -> dict[str, Any]:
        bests = {"best": self.best, "best_ema": self.best_ema}
        return {
            **{name: [best.epoch, best.score and tuple(best.score)] for name, best in bests.items()},
            "train_seconds": self.train_seconds,
            "train_images": self.train_images,
            "startup": [self.startup_images, self.startup_seconds],
            "run_seconds": self._run_seconds(),
            "epoch_seconds": self._epoch_seconds() if self._epoch_started else 0.0,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name in ("best", "best_ema"):
            epoch, values = state_dict[name]
            setattr(self, name, Best(values and self.score(*values), epoch))
        self.train_seconds, self.train_images = state_dict["train_seconds"], state_dict["train_images"]
        self.startup_images, self.startup_seconds = state_dict.get("startup", (0.0, 0.0))  # not in older checkpoints
        self._run_before, self._epoch_before = state_dict["run_seconds"], state_dict["epoch_seconds"]

    def _run_seconds(self) -> float:
        return self._run_before + time.perf_counter() - self._fit_started

    def _epoch_seconds(self) -> float:
        """Duration of the training batches of this epoch up to the latest."""
        assert self._epoch_started is not None
        return self._epoch_before + self._batch_ended - self._epoch_started

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._fit_started = time.perf_counter()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._epoch_started = time.perf_counter()  # a run that resumes within an epoch does not start that epoch

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._epoch_started, self._epoch_before, self._batches = time.perf_counter(), 0.0, 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert self._epoch_started is not None
        self._batch_ended = time.perf_counter()  # validation follows the last one
        self._batches += 1
        if self._first is None:
            self._first = self._batch_ended - self._epoch_started
        done, batches = batch_idx + 1, int(trainer.num_training_batches)
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if trainer.progress_bar_callback is None and done % every == 0 and done < batches:
            each, seconds = len(batch[1]) * trainer.world_size, self._batch_ended - self._epoch_started
            speed = _speed(self._batches * each, seconds, each if self._first else 0, self._first)
            log.info(
                "epoch %d/%d  batch %d/%d  %.0f images/s  %s left in the epoch",
                trainer.current_epoch + 1,
                trainer.max_epochs,
                done,
                batches,
                speed,
                duration((batches - done) * each / speed),
            )

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, ClassificationTask)
        train, seconds = pl_module.train_score.compute(), self._epoch_seconds()
        self.train_seconds += seconds
        self.train_images += train.images
        first, self._first = self._first or 0.0, 0.0
        first_images = train.images / trainer.num_training_batches if first else 0.0  # all batches are of one size
        speed = _speed(train.images, seconds, first_images, first)
        self.startup_seconds += first
        self.startup_images += first_images
        self._epoch_started = None
        for logger in trainer.loggers:
            if not isinstance(logger, MetricsFile):  # metrics.csv only holds reproducible values
                logger.log_metrics({"train/images_per_second": speed}, trainer.global_step - 1)
        epoch, epochs = trainer.current_epoch + 1, trainer.max_epochs or 1
        validation = ""
        if epoch % (trainer.check_val_every_n_epoch or 1) == 0:
            if pl_module.validated:
                self.best.update(pl_module.validated, epoch)
                validation += f"val {pl_module.validated}  "
            if pl_module.ema_validated:
                self.best_ema.update(pl_module.ema_validated, epoch)
                validation += f"ema {pl_module.ema_validated.brief}  "
        log.info(
            "epoch %d/%d  train %s  %s%.0f images/s  %s left",
            epoch,
            epochs,
            train.in_training,
            validation,
            speed,
            duration(self._run_seconds() / epoch * (epochs - epoch)),
        )


def _speed(images: float, seconds: float, startup_images: float, startup_seconds: float) -> float:
    """Images per second without those of the start, unless there are no others."""
    if images > startup_images:
        images, seconds = images - startup_images, seconds - startup_seconds
    return images / seconds if seconds else 0.0
