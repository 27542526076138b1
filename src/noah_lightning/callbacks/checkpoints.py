"""Checkpoints of the state and of the best epoch of a run, and resuming from them."""

import logging
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, Checkpoint, ModelCheckpoint
from lightning.pytorch.loggers import Logger

from noah_lightning.atomic_io import write_whole
from noah_lightning.callbacks.batch_split import BatchSplit
from noah_lightning.config.schema import CheckpointSettings
from noah_lightning.data.datamodule import ImageDataModule
from noah_lightning.distributed.collectives import max_over_ranks
from noah_lightning.distributed.environment import rank
from noah_lightning.distributed.signals import Stopped, StopRequest
from noah_lightning.errors import ConfigError, WeightsError, count, one_line
from noah_lightning.loggers.metrics_csv import MetricsFile
from noah_lightning.run_dir import CHECKPOINTS, PREDICTIONS, RunDir
from noah_lightning.task import ClassificationTask

log = logging.getLogger("noah_lightning")

LAST = "last.ckpt"


class WholeFiles(TorchCheckpointIO):
    """Atomic checkpoint writer; a file that cannot be written, as on a full disk, is logged and the run continues.

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
            damaged = archive.testzip()
        content: dict[str, Any] = {} if damaged else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch, pickle and zipfile each raise their own
        raise WeightsError(f"{path} cannot be read as a checkpoint: {one_line(error)}") from error
    if damaged:
        raise WeightsError(f"{path} is damaged: the checksum of {damaged} is wrong")
    return content


class Checkpoints(Checkpoint):
    """Saves ``step-<steps>.ckpt``, keeps the last few, and links ``last.ckpt`` to the latest.

    Saves only between optimizer steps, and at the end of an epoch after its validation.

    Args:
        run_dir: run directory.
        settings: steps and time between two checkpoints, and the number of checkpoints to keep.
        split: division of a step. When resuming from a checkpoint with another division, the epoch restarts.
        stop: checked after each step; once it is set, all processes save the run and raise :class:`Stopped` after the
            same step.
    """

    def __init__(self, run_dir: Path, settings: CheckpointSettings, split: BatchSplit, stop: StopRequest) -> None:
        self.folder, self.settings, self.split, self.stop = run_dir / CHECKPOINTS, settings, split, stop

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
        pl_module.train_score.reset()  # counts of the part that is repeated
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
        if stop or late or trainer.global_step % self.settings.every_n_steps == 0:
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
        late = time.monotonic() - self._saved > 60 * self.settings.every_minutes
        signal, any_late = max_over_ranks([self.stop.signal, int(late)], trainer)
        return signal, bool(any_late)

    def save(self, trainer: pl.Trainer) -> None:
        """Save the current state. Must be called in all processes."""
        for logger in trainer.loggers:
            logger.save()  # a resumed run does not log it again
        trainer.save_checkpoint(self.folder / f"step-{trainer.global_step:08}.ckpt")
        self._saved = time.monotonic()
        writer = trainer.strategy.checkpoint_io
        assert isinstance(writer, WholeFiles)
        if rank() == 0 and not writer.failed:
            _keep(_checkpoints(self.folder)[: self.settings.keep])


class BestWeights(ModelCheckpoint):
    """``<name>.ckpt`` of the epoch with the highest ``monitor``."""

    def __init__(self, run_dir: Path, name: str, monitor: str) -> None:
        super().__init__(run_dir / CHECKPOINTS, name, monitor=monitor, mode="max", enable_version_counter=False)

    @property
    def state_key(self) -> str:
        """Key of the state in checkpoints, fixed so that renaming the class keeps them readable."""
        return f"BestWeights{super().state_key.removeprefix(type(self).__qualname__)}"

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best epoch so far, also after the run directory was moved, when Lightning discards it."""

        def here(path: str) -> str:
            return path and str(Path(str(self.dirpath)) / Path(path).name)

        paths = {key: here(state_dict[key]) for key in ("best_model_path", "kth_best_model_path")}
        best = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **paths, "best_k_models": best, "dirpath": self.dirpath})


class BestRecord(Callback):
    """Writes the validation predictions of the best epoch so far to ``run``, with the class names of ``data``."""

    state_key = "BestRecord"  # in checkpoints

    def __init__(self, run: RunDir, data: ImageDataModule) -> None:
        self.run, self.data = run, data
        self.best: float = -1  # rating

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, ClassificationTask)
        if trainer.sanity_checking or not pl_module.predicted or not pl_module.validated or rank() > 0:
            return
        if pl_module.validated.rating > self.best:
            self.best = pl_module.validated.rating
            labels, predicted = pl_module.predicted
            predicted = predicted if predicted.is_floating_point() else predicted.int()
            arrays = {"labels": labels.int().numpy(), pl_module.objective.prediction: predicted.numpy()}
            try:
                self.run.write_predictions(self.data.class_names, **arrays)
            except OSError as error:  # a full disk does not end the run, as for a checkpoint
                path = self.run.path / PREDICTIONS
                log.warning("%s cannot be written (%s); the run continues", path, one_line(error))


def keep_only_last(folder: Path) -> None:
    """After a run has finished, turn ``last.ckpt`` into a file and remove the other checkpoints."""
    if files := _checkpoints(folder):  # there are none if the disk was always full
        files[0].replace(folder / LAST)
    for path in folder.glob("step-*"):
        path.unlink()


def _checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, the latest first."""
    return sorted(folder.glob("step-*.ckpt"), reverse=True)


def _keep(checkpoints: Sequence[Path]) -> None:
    """Link ``last.ckpt`` to the first one, atomically, and remove all others and incomplete files left by a crash."""
    folder = checkpoints[0].parent
    new = folder / "last.new"
    new.unlink(missing_ok=True)
    new.symlink_to(checkpoints[0].name)
    new.replace(folder / LAST)
    for path in {*folder.glob("step-*")} - {*checkpoints, *map(_old_metrics, checkpoints)}:
        path.unlink()


def _old_metrics(checkpoint: Path) -> Path:
    """Copy of metrics.csv, which version 0.1 wrote with each checkpoint."""
    return checkpoint.with_suffix(".csv")


def _epochs_done(checkpoint: dict[str, Any]) -> int:
    """Number of complete epochs."""
    epochs: int = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    return epochs


class Saved(NamedTuple):
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
    log.info("resumed  after %s, from %s", count(saved.steps, "step"), saved.path)
    if saved.split != split:
        log.warning(
            "forced   %s instead of %s in a step: epoch %d restarts from its beginning, with the weights of step %s",
            *(split, saved.split, saved.epochs + 1, f"{saved.steps:,}"),
        )
    next(logger for logger in loggers if isinstance(logger, MetricsFile)).resume(saved.rows)
    # A damaged checkpoint that was skipped must not count among those kept.
    _keep([path for path in _checkpoints(saved.path.parent) if path <= saved.path])
    return saved
