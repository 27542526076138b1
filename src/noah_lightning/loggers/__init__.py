"""Where metrics go: always ``metrics.csv`` in the run directory, and one more place if asked."""

from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from omegaconf import DictConfig

from noah_lightning.attention_picture import AttentionPicture
from noah_lightning.checks import whole_number
from noah_lightning.data.module import ImageDataModule
from noah_lightning.epoch_report import EpochReport
from noah_lightning.errors import ConfigError, did_you_mean
from noah_lightning.loggers.metrics_file import MetricsFile
from noah_lightning.loggers.speed import EpochSpeed
from noah_lightning.loggers.wandb_run import WandbRun, make_wandb_run
from noah_lightning.runs import Results


def make_loggers(config: DictConfig, run_dir: Path) -> list[Logger]:
    """The CSV logger and the one named by ``config.logger.name``.

    Raises:
        ConfigError: an unknown logger or setting.
    """
    name = config.logger.name
    loggers: list[Logger] = [MetricsFile(run_dir)]
    if name == "tensorboard":
        loggers.append(TensorBoardLogger(run_dir, name="", version="tensorboard"))
    elif name == "wandb":
        loggers.append(make_wandb_run(config, run_dir))
    elif name != "csv":
        raise ConfigError(f"logger.name={name!r} is unknown{did_you_mean(name, ['csv', 'tensorboard', 'wandb'])}")
    return loggers


def logger_callbacks(
    config: DictConfig, loggers: Sequence[Logger], report: EpochReport, data: ImageDataModule
) -> list[Callback]:
    """What feeds the loggers beside the task; to stand behind ``report`` in the trainer's list.

    Raises:
        ConfigError: ``logger.picture_every_n_epochs`` is no whole number.
    """
    callbacks: list[Callback] = [EpochSpeed(report)]
    every = config.logger.get("picture_every_n_epochs")
    if every is not None:
        whole_number("logger.picture_every_n_epochs", every, low=0)
    if every and config.head.name == "noah":
        callbacks += [AttentionPicture(logger, data, every) for logger in loggers if isinstance(logger, WandbRun)]
    return callbacks


def close_loggers(loggers: Sequence[Logger], results: Results | None) -> None:
    """End the W&B run here, so that the next one in this process starts its own; without ``results`` it failed."""
    for logger in loggers:
        if isinstance(logger, WandbRun):
            logger.close(results)
