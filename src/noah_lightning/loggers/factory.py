"""Loggers of a run: always ``metrics.csv`` in the run directory, and optionally one more."""

from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch.loggers import Logger, TensorBoardLogger

from noah_lightning.config.schema import RunConfig
from noah_lightning.loggers.metrics_csv import MetricsFile
from noah_lightning.loggers.wandb_run import WandbRun, make_wandb_run
from noah_lightning.run_dir import Results


def make_loggers(config: RunConfig, run_dir: Path) -> list[Logger]:
    """The CSV logger and the one named by ``config.logger.name``."""
    loggers: list[Logger] = [MetricsFile(run_dir)]
    if config.logger.name == "tensorboard":
        loggers.append(TensorBoardLogger(run_dir, name="", version="tensorboard"))
    elif config.logger.name == "wandb":
        loggers.append(make_wandb_run(config, run_dir))
    return loggers


def close_loggers(loggers: Sequence[Logger], results: Results | None) -> None:
    """Finish the W&B run, so that the next run in this process starts its own; without ``results`` it is failed."""
    for logger in loggers:
        if isinstance(logger, WandbRun):
            logger.close(results)
