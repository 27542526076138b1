"""Checkpoints of the whole state of a run, and resuming from them."""

import logging
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import Logger

from noah_lightning.atomic_io import write_whole
from noah_lightning.config.schema import RunConfig
from noah_lightning.data.datamodule import ImageDataModule
from noah_lightning.distributed.collectives import max_over_ranks
from noah_lightning.distributed.environment import processes_started, rank
from noah_lightning.distributed.signals import Stopped, StopRequest
from noah_lightning.errors import ConfigError, WeightsError, one_line
from noah_lightning.loggers.metrics_csv import MetricsFile
from noah_lightning.run_dir import CHECKPOINTS
from noah_lightning.task import ClassificationTask

log = logging.getLogger("noah_lightning")


class WholeFiles(TorchCheckpointIO):
    """Atomic checkpoint writer: a crash, a power cut or a full disk leaves the previous file as it is.

    A file that cannot be written is logged, and the run continues.

    Attributes:
        failed: whether the latest file could not be written.
    """

    failed = False

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        try:
            write_whole(Path(path), lambda file: torch.save(checkpoint, file))
            self.failed = False
        except (OSError, RuntimeError) as error:  # torch turns some errors of the system into its own
            self.failed = True
            log.warning("%s cannot be written (%s); what was saved before is kept", path, one_line(error))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU; nothing in it is executed.

    Raises:
        WeightsError: not a checkpoint, or a damaged one, by the checksum of each part of the file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise WeightsError(f"{path} is damaged: the checksum of {damaged} is wrong")
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return content
    except WeightsError:
        raise
    except Exception as error:  # torch, pickle and zipfile each raise their own
        raise WeightsError(f"{path} cannot be read as a checkpoint: {one_line(error)}") from error


LAST = "last.ckpt"


class BatchSplit(NamedTuple):
    """Division of an optimizer step: ``images`` in each process, in each of ``passes`` accumulated passes."""

    processes: int
    images: int
    passes: int

    @classmethod
    def of(cls, config: RunConfig, data: ImageDataModule) -> "BatchSplit":
        """The division by the processes of this run."""
        return cls(processes_started(), data.batch_size, config.trainer.accumulate_grad_batches)

    @property
    def in_step(self) -> int:
        """Images of an optimizer step."""
        return self.processes * self.images * self.passes

    def __str__(self) -> str:
        parts = [f"{self.processes} × " if self.processes > 1 else "", f"{self.images} images"]
        return "".join(parts) + (f" × {self.passes} passes" if self.passes > 1 else "")


class Checkpoints(Checkpoint):
    """Saves ``step-<steps>.ckpt``, keeps the last few, and links ``last.ckpt`` to the latest.

    Saves only between optimizer steps, and at the end of an epoch after its validation.

    Args:
        run_dir: run directory.
        every_n_steps: optimizer steps between two checkpoints.
        every_minutes: maximum time between two checkpoints.
        keep: number of checkpoints to keep.
        split: division of a step. When resuming from a checkpoint with another division, the epoch restarts.
        stop: checked after each step; once it is set, all processes save the run and raise :class:`Stopped` after the
            same step.
    """

    def __init__(
        self, run_dir: Path, every_n_steps: int, every_minutes: float, keep: int, split: BatchSplit, stop: StopRequest
    ) -> None:
        self.folder = run_dir / CHECKPOINTS
        self.every_n_steps, self.every_seconds, self.keep = every_n_steps, 60 * every_minutes, keep
        self.split, self.stop = split, stop

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["batch_split"] = list(self.split)
        checkpoint["metrics_rows"] = sum(one.rows for one in trainer.loggers if isinstance(one, MetricsFile))

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restart the epoch if steps are divided differently now, because its batches differ then."""
        if BatchSplit(*checkpoint["batch_split"]) == self.split:
            return
        assert isinstance(pl_module, ClassificationTask)
        pl_module.train_accuracy.reset()  # counts of the part that is repeated
        epochs, steps, fit = _epochs_done(checkpoint), checkpoint["global_step"], trainer.fit_loop
        del checkpoint["loops"]  # from which Lightning restores the position in the epoch
        fit.epoch_progress.increment_by(epochs)
        fit.epoch_loop._batches_that_stepped = steps
        fit.epoch_loop.automatic_optimization.optim_progress.optimizer.step.increment_by(steps)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._saved = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        done = batch_idx + 1
        if done % trainer.accumulate_grad_batches or done == trainer.num_training_batches:
            return  # the last batch is followed by validation and on_train_epoch_end
        stop, late = self._agree(trainer)
        if stop or late or trainer.global_step % self.every_n_steps == 0:
            self.save(trainer)
        if stop:
            raise Stopped(stop)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.save(trainer)
        stop, _ = self._agree(trainer)
        if stop and trainer.current_epoch + 1 < (trainer.max_epochs or 0):
            raise Stopped(stop)

    def _agree(self, trainer: pl.Trainer) -> tuple[int, bool]:
        """Signal that any process received, and whether a checkpoint is due in any process (a collective)."""
        late = time.monotonic() - self._saved > self.every_seconds
        signal, any_late = max_over_ranks([self.stop.signal, int(late)], trainer)
        return signal, bool(any_late)

    def save(self, trainer: pl.Trainer) -> None:
        """Save the current state. Must be called in all processes."""
        for logger in trainer.loggers:
            logger.save()  # a resumed run does not log it again
        path = self.folder / f"step-{trainer.global_step:08}.ckpt"
        trainer.save_checkpoint(path)
        self._saved = time.monotonic()
        writer = trainer.strategy.checkpoint_io
        assert isinstance(writer, WholeFiles)
        if rank() == 0 and not writer.failed:
            _point(self.folder / LAST, path)
            _remove_others(self.folder, _checkpoints(self.folder)[: self.keep])


def keep_only_last(folder: Path) -> None:
    """After a run has finished, turn ``last.ckpt`` into a file and remove the other checkpoints."""
    files = _checkpoints(folder)
    if files:  # there are none if the disk was always full
        files[0].replace(folder / LAST)
    _remove_others(folder, [])


def _checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, the latest first."""
    return sorted(folder.glob("step-*.ckpt"), reverse=True)


def _remove_others(folder: Path, kept: Sequence[Path]) -> None:
    """Remove all checkpoints but ``kept``, and incomplete files left by a crash."""
    wanted = {*kept, *map(_old_metrics, kept)}
    for path in folder.glob("step-*"):
        if path not in wanted:
            path.unlink(missing_ok=True)


def _old_metrics(checkpoint: Path) -> Path:
    """Copy of metrics.csv, which version 0.1 wrote with each checkpoint."""
    return checkpoint.with_suffix(".csv")


def _point(link: Path, path: Path) -> None:
    """Link ``link`` to ``path`` atomically."""
    new = link.with_suffix(".new")
    new.unlink(missing_ok=True)
    new.symlink_to(path.name)
    new.replace(link)


def _epochs_done(checkpoint: dict[str, Any]) -> int:
    """Number of complete epochs."""
    epochs: int = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    return epochs


@dataclass(frozen=True)
class Saved:
    """A checkpoint to resume from."""

    path: Path
    steps: int  # optimizer steps done
    epochs: int  # complete epochs
    split: BatchSplit
    rows: int  # of metrics.csv


def last_saved(run_dir: Path) -> Saved | None:
    """The latest intact checkpoint; damaged ones are logged and skipped. None if there are no checkpoints.

    Raises:
        WeightsError: all checkpoints are damaged.
    """
    files = _checkpoints(run_dir / CHECKPOINTS)
    for path in files:
        try:
            content = read_checkpoint(path)
            split = BatchSplit(*content["batch_split"])
            return Saved(path, content["global_step"], _epochs_done(content), split, _rows(path, content))
        except (WeightsError, KeyError, TypeError, ValueError) as error:
            reason = error if isinstance(error, WeightsError) else f"{path} is not a checkpoint of a run"
            log.warning("%s; trying the one before", reason)
    if files:
        raise WeightsError(
            f"no checkpoint in {run_dir / CHECKPOINTS} can be read; without them noah resume restarts from scratch"
        )
    return None


def _rows(path: Path, content: dict[str, Any]) -> int:
    if "metrics_rows" in content:
        return int(content["metrics_rows"])
    old = _old_metrics(path)
    return max(0, old.read_bytes().count(b"\n") - 1) if old.is_file() else 0  # less the header


def resume_from(run_dir: Path, loggers: Sequence[Logger], split: BatchSplit, force: bool) -> Saved | None:
    """Prepare to resume the run in ``run_dir``; returns its checkpoint, or None to start from scratch.

    Must be called in all processes. Rank 0 logs the checkpoint, truncates metrics.csv and removes later checkpoints.

    Raises:
        ConfigError: steps are divided differently now, and ``force`` is not set.
        WeightsError: as :func:`last_saved`.
    """
    saved = last_saved(run_dir)
    if saved is None:
        return None
    if saved.split != split and not force:
        raise ConfigError(
            f"{run_dir} was started with steps of {saved.split}, not {split}; resume with as many processes, or add "
            "--force, which restarts the epoch"
        )
    if rank() > 0:
        return saved
    log.info("resumed  after %s steps, from %s", f"{saved.steps:,}", saved.path)
    if saved.split != split:
        log.warning(
            "forced   %s instead of %s in a step: epoch %d restarts from its beginning, with the weights of step %s",
            *(split, saved.split, saved.epochs + 1, f"{saved.steps:,}"),
        )
    next(logger for logger in loggers if isinstance(logger, MetricsFile)).resume(saved.rows)
    # A damaged checkpoint that was skipped must not count among those kept.
    _point(saved.path.with_name(LAST), saved.path)
    _remove_others(saved.path.parent, [one for one in _checkpoints(saved.path.parent) if one <= saved.path])
    return saved
