"""What a person sees: log lines, progress bars on a terminal, plain lines elsewhere."""

import logging
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, RichProgressBar
from rich import get_console
from rich.logging import RichHandler

from noah_lightning.processes import rank
from noah_lightning.task import ClassificationTask
from noah_lightning.task.accuracy import Accuracy

log = logging.getLogger("noah_lightning")

# Warnings of the libraries that ask nothing of the user.
_CHATTER = (
    ".*does not have many workers.*",  # the number of workers suits the machine, or the data is in memory
    ".*smaller than the logging interval.*",  # a short epoch; its totals are logged all the same
    ".*`srun` command is available.*",  # a machine of a cluster may train without the cluster
    ".*sync_dist=True.*",  # the task logs what it has summed over the processes itself
    ".*in eval mode at the start of training.*",  # the average of the weights, which is never trained
    ".*ended before the epoch ended and your dataloader is not resumable.*",  # its batches are those that are left
    "Checkpoint directory .* exists and is not empty.*",  # so it does where a run goes on
    "Experiment logs directory .* exists and is not empty.*",  # it holds config.yaml, and no older metrics
    ".*isinstance\\(treespec, LeafSpec\\).* is deprecated.*",  # Lightning's own use of torch
)


def start_logging() -> None:
    """Log lines to standard output, and the libraries' chatter only from warnings on.

    Of several processes only the first one says anything.
    """
    log.setLevel(logging.INFO)
    log.propagate = False
    log.handlers.clear()
    if rank() > 0:
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        return
    if on_terminal():
        handler: logging.Handler = RichHandler(
            console=get_console(), show_time=False, show_level=False, show_path=False
        )
    else:
        handler = logging.StreamHandler(sys.stdout)
    log.addHandler(handler)
    silence_libraries()


def silence_libraries() -> None:
    """Hear of the libraries from warnings on, and not of what asks nothing of the user."""
    for library in ("lightning.pytorch", "lightning.fabric", "timm"):
        logging.getLogger(library).setLevel(logging.WARNING)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it warns at each of ten retries
    for chatter in _CHATTER:
        warnings.filterwarnings("ignore", message=chatter)


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Write all log lines to ``path`` too."""
    handler = _LogFile(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        with suppress(OSError):  # told already
            handler.close()


class _LogFile(logging.FileHandler):
    """Python's would print a traceback for each line that a full disk does not take."""

    _failed = False

    def handleError(self, record: logging.LogRecord) -> None:
        if not self._failed:
            self._failed = True  # before the line that says so comes here, too
            log.warning("%s cannot be written (%s); the run goes on", self.baseFilename, sys.exception())


def on_terminal() -> bool:
    """Whether there is a terminal to draw on; elsewhere plain lines are written."""
    return sys.stdout.isatty()


def progress(every: int) -> Callback:
    """A progress bar on a terminal, a line every so many batches elsewhere."""
    return RichProgressBar() if on_terminal() and rank() == 0 else PlainProgress(every)


class PlainProgress(Callback):
    """A line every so many batches with the rate and the time left in the epoch."""

    def __init__(self, every: int) -> None:
        self.every = every

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begin()  # a run that goes on in the middle of an epoch does not start that epoch

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begin()

    def _begin(self) -> None:
        self.started, self.images, self.batches = time.perf_counter(), 0, 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.images += len(batch[1]) * trainer.world_size
        self.batches += 1
        done, batches = batch_idx + 1, int(trainer.num_training_batches)
        if done % self.every == 0 and done < batches:
            seconds = time.perf_counter() - self.started
            log.info(
                "epoch %d/%d  batch %d/%d  %.0f images/s  %s left in the epoch",
                trainer.current_epoch + 1,
                trainer.max_epochs,
                done,
                batches,
                self.images / seconds,
                duration(seconds / self.batches * (batches - done)),
            )


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


def duration(seconds: float) -> str:
    """``75`` → ``1:15``, ``3700`` → ``1:01:40``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def write_to_log_only(line: str) -> None:
    """An error, into the run's log."""
    for handler in log.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(log.makeRecord(log.name, logging.ERROR, "", 0, "error: %s", (line,), None))
