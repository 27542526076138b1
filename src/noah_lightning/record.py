"""What the best epoch said of every validation image, kept for the comparison of runs."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.callbacks import Callback

from noah_lightning.data.module import ImageDataModule
from noah_lightning.errors import ConfigError, one_line
from noah_lightning.processes import rank
from noah_lightning.task import ClassificationTask
from noah_lightning.whole_file import write_whole

log = logging.getLogger("noah_lightning")


@dataclass(frozen=True)
class Record:
    """Arrays over the validation images in the order of the data set, and the names of the classes."""

    labels: np.ndarray  # int32 (images,)
    guesses: np.ndarray  # int32 (images,)
    class_names: list[str]


class BestRecord(Callback):
    """Writes :class:`Record` to ``path`` whenever an epoch is better than all before."""

    def __init__(self, path: Path, data: ImageDataModule) -> None:
        self.path, self.data = path, data
        self.best = -1  # images right

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint: plain values."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, ClassificationTask)
        if trainer.sanity_checking or not pl_module.predicted or not pl_module.validated or rank() > 0:
            return
        if pl_module.validated.correct > self.best:
            self.best = pl_module.validated.correct
            labels, guesses = (values.int().numpy() for values in pl_module.predicted)
            names = np.array(self.data.class_names)
            try:
                write_whole(
                    self.path,
                    lambda file: np.savez_compressed(file, labels=labels, guesses=guesses, class_names=names),
                )
            except OSError as error:  # as for a checkpoint: a full disk ends no run
                log.warning("%s cannot be written (%s); the run goes on", self.path, one_line(error))


def read_record(path: Path) -> Record:
    """What :class:`BestRecord` wrote; nothing in the file is executed.

    Raises:
        ConfigError: no such file, or another one.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return Record(arrays["labels"], arrays["guesses"], arrays["class_names"].tolist())
    except (OSError, KeyError, ValueError) as error:
        raise ConfigError(f"{path} holds no predictions: {one_line(error)}") from error
