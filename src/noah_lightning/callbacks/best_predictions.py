"""What the best epoch said of every validation image, kept for the comparison of runs."""

import logging
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.callbacks import Callback

from noah_lightning.atomic_io import write_whole
from noah_lightning.data.datamodule import ImageDataModule
from noah_lightning.distributed.environment import rank
from noah_lightning.errors import one_line
from noah_lightning.task import ClassificationTask

log = logging.getLogger("noah_lightning")


class BestRecord(Callback):
    """Writes what each epoch that is better than all before says to ``path``.

    There are ``labels`` and ``guesses``, int32 (images,) in the order of the data set, and ``class_names``.
    """

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
