"""Going on with a run that was broken off, from its last checkpoint."""

import csv
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger, Logger

from noah_lightning.batch_split import BatchSplit
from noah_lightning.checkpoint_file import read_checkpoint
from noah_lightning.checkpoints import checkpoints, metrics_of
from noah_lightning.errors import ConfigError, WeightsError
from noah_lightning.run_files import CHECKPOINTS, METRICS

log = logging.getLogger("noah_lightning")


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
