"""How far a training is: a bar on a terminal, plain lines elsewhere."""

import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, RichProgressBar

from noah_lightning.distributed.environment import rank
from noah_lightning.loggers.console import duration, log, on_terminal


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
