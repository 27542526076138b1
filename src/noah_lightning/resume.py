"""Going on with a run that was broken off, from its last checkpoint."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.pytorch.loggers import CSVLogger, Logger
from omegaconf import DictConfig

from noah_lightning import runs
from noah_lightning.errors import ConfigError, WeightsError, one_line
from noah_lightning.run_files import CHECKPOINTS, METRICS


def last_checkpoint(run_dir: Path) -> Path | None:
    """Where a run can go on; None where it has to begin anew."""
    path = run_dir / CHECKPOINTS / "last.ckpt"
    return path if path.is_file() else None


def check_same(run_dir: Path, config: DictConfig) -> None:
    """Refuse to go on with settings other than the run's own.

    Raises:
        ConfigError: the settings differ, or there is no run.
    """
    if runs.read_config(run_dir) != config:
        raise ConfigError(f"{run_dir} was begun with other settings; give them again, or another hydra.run.dir=…")


def keep_metrics(run_dir: Path, loggers: Sequence[Logger], checkpoint: Path) -> None:
    """Keep what was logged up to the checkpoint; Lightning's logger would begin an empty file.

    Raises:
        WeightsError: a checkpoint that cannot be read.
    """
    path = run_dir / METRICS
    before = path.read_text() if path.is_file() else ""
    writer = next(logger for logger in loggers if isinstance(logger, CSVLogger)).experiment  # removes the file
    rows = csv.DictReader(io.StringIO(before))
    kept = [row for row in rows if int(row["step"]) < _steps_done(checkpoint)]
    if kept:
        writer.metrics_keys = list(kept[0])
        with path.open("w", newline="") as file:
            rewritten = csv.DictWriter(file, writer.metrics_keys)
            rewritten.writeheader()
            rewritten.writerows(kept)


def _steps_done(checkpoint: Path) -> int:
    try:
        steps: int = torch.load(checkpoint, map_location="cpu", weights_only=True)["global_step"]
    except Exception as error:  # torch, pickle and zipfile each raise their own
        raise WeightsError(f"{checkpoint} cannot be read as a checkpoint: {one_line(error)}") from error
    return steps
