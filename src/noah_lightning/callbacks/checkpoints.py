"""Checkpoint files that are whole: put in their place when they are written, and checked before they are read."""

import csv
import logging
import shutil
import time
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger

from noah_lightning.atomic_io import write_whole
from noah_lightning.callbacks.batch_split import BatchSplit
from noah_lightning.distributed.collectives import max_over_ranks
from noah_lightning.distributed.environment import rank
from noah_lightning.distributed.signals import Stopped, StopRequest
from noah_lightning.errors import ConfigError, WeightsError, one_line
from noah_lightning.run_dir import CHECKPOINTS, METRICS

log = logging.getLogger("noah_lightning")


class WholeFiles(TorchCheckpointIO):
    """How Lightning writes checkpoints here: a crash, a power cut or a full disk leaves the previous file as it is.

    A file that cannot be written ends no run: it is told, and the run goes on.

    Attributes:
        failed: whether the latest one could not be written.
    """

    failed = False

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write ``path`` in one piece."""
        try:
            write_whole(Path(path), lambda file: torch.save(checkpoint, file))
            self.failed = False
        except (OSError, RuntimeError) as error:  # torch's writer turns the system's errors into its own
            self.failed = True
            log.warning("%s cannot be written (%s); what was saved before is kept", path, one_line(error))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU; nothing in it is executed.

    Raises:
        WeightsError: no checkpoint, or a damaged one: each part of the file has a checksum.
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


class BestWeights(ModelCheckpoint):
    """``<name>.ckpt`` of the epoch with the highest ``monitor``."""

    def __init__(self, run_dir: Path, name: str, monitor: str) -> None:
        super().__init__(run_dir / CHECKPOINTS, name, monitor=monitor, mode="max", enable_version_counter=False)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the best so far, also where the run directory has been moved; Lightning would forget it."""
        here = {str(path): str(Path(str(self.dirpath)) / Path(path).name) for path in state_dict["best_k_models"]}
        paths = {
            key: here.get(state_dict[key], state_dict[key]) for key in ("best_model_path", "kth_best_model_path")
        }
        best = {here[path]: score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **paths, "best_k_models": best, "dirpath": self.dirpath})


class Checkpoints(Checkpoint):
    """Keeps ``step-<steps>.ckpt``, the last few of them, and ``last.ckpt``, which points to the latest.

    It saves only where no gradients are half added up. At the end of an epoch that is after its validation.

    Args:
        run_dir: of the run.
        every_n_steps: optimiser steps between two checkpoints.
        every_minutes: longest time between two.
        keep: how many.
        stop: asked after each step; once it is set, the run is saved and :class:`Stopped` raised, in all processes
            after the same step.
    """

    def __init__(self, run_dir: Path, every_n_steps: int, every_minutes: float, keep: int, stop: StopRequest) -> None:
        self.folder, self.metrics = run_dir / CHECKPOINTS, run_dir / METRICS
        self.every_n_steps, self.every_seconds, self.keep = every_n_steps, 60 * every_minutes, keep
        self.stop = stop

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._saved = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        done = batch_idx + 1
        if done % trainer.accumulate_grad_batches or done == trainer.num_training_batches:
            return  # after the last batch come the validation and the end of the epoch
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
        """Signal that any process received, and whether a checkpoint is due in any of them (a collective)."""
        late = time.monotonic() - self._saved > self.every_seconds
        signal, any_late = max_over_ranks([self.stop.signal, int(late)], trainer)
        return signal, bool(any_late)

    def save(self, trainer: pl.Trainer) -> None:
        """Save the state as it is now. All processes call this."""
        for logger in trainer.loggers:
            logger.save()  # what was logged before this step will not be logged again
        path = self.folder / f"step-{trainer.global_step:08}.ckpt"
        if rank() == 0:
            _keep_metrics(self.metrics, path)
        try:
            trainer.save_checkpoint(path)
        finally:
            if rank() == 0 and not path.is_file():
                metrics_of(path).unlink(missing_ok=True)
        self._saved = time.monotonic()
        if rank() == 0 and not _io(trainer).failed:
            _point(self.folder / LAST, path)
            _remove_others(self.folder, checkpoints(self.folder)[: self.keep])


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, the latest first."""
    return sorted(folder.glob("step-*.ckpt"), reverse=True)


def remove_later(checkpoint: Path) -> None:
    """What a run goes on from becomes its latest; a damaged one that was passed over would count among those kept."""
    _point(checkpoint.with_name(LAST), checkpoint)
    _remove_others(checkpoint.parent, [one for one in checkpoints(checkpoint.parent) if one <= checkpoint])


def keep_only_last(folder: Path) -> None:
    """When a run has finished: ``last.ckpt`` becomes a file, and nothing remains to go on from."""
    files = checkpoints(folder)
    if files:  # none could be written, where the disk was full all along
        files[0].replace(folder / LAST)
    _remove_others(folder, [])


def _remove_others(folder: Path, kept: Sequence[Path]) -> None:
    """Remove all checkpoints but those, and what a crash has left of one: its metrics, or a part of it."""
    wanted = {*kept, *map(metrics_of, kept)}
    for path in folder.glob("step-*"):
        if path not in wanted:
            path.unlink(missing_ok=True)


def metrics_of(checkpoint: Path) -> Path:
    """What had been logged when the checkpoint was saved. ``metrics.csv`` itself may be cut off anywhere."""
    return checkpoint.with_suffix(".csv")


def _keep_metrics(metrics: Path, checkpoint: Path) -> None:
    if metrics.is_file():
        with suppress(OSError):  # a full disk, which the checkpoint will meet and tell
            write_whole(metrics_of(checkpoint), lambda file: file.write(metrics.read_bytes()))


def _point(link: Path, path: Path) -> None:
    """Let ``link`` lead to ``path``, at once."""
    new = link.with_suffix(".new")
    new.unlink(missing_ok=True)
    new.symlink_to(path.name)
    new.replace(link)


def _io(trainer: pl.Trainer) -> WholeFiles:
    io = trainer.strategy.checkpoint_io
    assert isinstance(io, WholeFiles)
    return io


@dataclass(frozen=True)
class Saved:
    """A checkpoint to go on from.

    Attributes:
        path: of the file.
        steps: optimiser steps that were done.
        split: how the images of a step were shared out.
    """

    path: Path
    steps: int
    split: BatchSplit


def last_saved(run_dir: Path) -> Saved | None:
    """The latest checkpoint that is in order; damaged ones are told and passed over. None: there is none at all.

    Raises:
        WeightsError: there are some, all damaged.
    """
    files = checkpoints(run_dir / CHECKPOINTS)
    for path in files:
        try:
            content = read_checkpoint(path)
            return Saved(path, content["global_step"], BatchSplit(*content["batch_split"]))
        except (WeightsError, KeyError, TypeError) as error:
            told = error if isinstance(error, WeightsError) else f"{path} is no checkpoint of a run"
            log.warning("%s; looking at the one before", told)
    if files:
        raise WeightsError(
            f"no checkpoint in {run_dir / CHECKPOINTS} can be read; without it noah resume begins anew"
        )
    return None


def check_split(run_dir: Path, saved: Saved, now: BatchSplit) -> None:
    """Refuse to share out the images otherwise: draws and sums of each process would be others.

    Raises:
        ConfigError: the split differs.
    """
    if saved.split != now:
        raise ConfigError(
            f"{run_dir} was begun with steps of {saved.split}, not {now}; go on with as many processes, or add "
            "--force, which says what is not exact then"
        )


def keep_metrics(run_dir: Path, loggers: Sequence[Logger], saved: Saved) -> None:
    """Go on with what was logged up to the checkpoint; Lightning's logger would begin an empty file."""
    writer = next(logger for logger in loggers if isinstance(logger, CSVLogger)).experiment  # removes the file
    kept = metrics_of(saved.path)
    if kept.is_file():
        shutil.copyfile(kept, run_dir / METRICS)
        with kept.open(newline="") as file:
            writer.metrics_keys = next(csv.reader(file), [])
