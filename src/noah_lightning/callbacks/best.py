"""Weights and predictions of the best epoch."""

import logging
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from noah_lightning.data.datamodule import ImageDataModule
from noah_lightning.distributed.environment import rank
from noah_lightning.errors import one_line
from noah_lightning.run_dir import CHECKPOINTS, PREDICTIONS, RunDir
from noah_lightning.task import ClassificationTask

log = logging.getLogger("noah_lightning")


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
        here = {str(path): str(Path(str(self.dirpath)) / Path(path).name) for path in state_dict["best_k_models"]}
        paths = {
            key: here.get(state_dict[key], state_dict[key]) for key in ("best_model_path", "kth_best_model_path")
        }
        best = {here[path]: score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **paths, "best_k_models": best, "dirpath": self.dirpath})


class BestRecord(Callback):
    """Writes the validation predictions of the best epoch so far to ``run``, with the class names of ``data``."""

    state_key = "BestRecord"  # in checkpoints

    def __init__(self, run: RunDir, data: ImageDataModule) -> None:
        self.run, self.data = run, data
        self.best = -1  # number of correct images

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
            try:
                self.run.write_predictions(labels, guesses, self.data.class_names)
            except OSError as error:  # a full disk does not end the run, as for a checkpoint
                log.warning(
                    "%s cannot be written (%s); the run continues", self.run.path / PREDICTIONS, one_line(error)
                )
