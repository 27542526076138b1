"""Images per second of each epoch, for the dashboards."""

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger

from noah_lightning.epoch_report import EpochReport


class EpochSpeed(Callback):
    """Logs ``train/images_per_second``, as the epoch's line on the console has it.

    Args:
        report: has measured the epoch when this is called, so it comes first in the trainer's list.
    """

    def __init__(self, report: EpochReport) -> None:
        self.report = report
        self.images, self.seconds = 0, 0.0  # up to the last epoch

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        images, seconds = self.report.train_images, self.report.train_seconds
        speed = {"train/images_per_second": (images - self.images) / (seconds - self.seconds)}
        for logger in trainer.loggers:
            if not isinstance(logger, CSVLogger):  # metrics.csv holds what comes out the same each time
                logger.log_metrics(speed, trainer.global_step - 1)
        self.images, self.seconds = images, seconds
