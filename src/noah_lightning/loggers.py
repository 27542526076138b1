"""Where metrics go: always ``metrics.csv`` in the run directory, and one more place if asked."""

import os
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from omegaconf import DictConfig, OmegaConf

from noah_lightning.config import settings
from noah_lightning.errors import ConfigError, did_you_mean


def make_loggers(config: DictConfig, run_dir: Path) -> list[Logger]:
    """The CSV logger and the one named by ``config.logger.name``.

    Raises:
        ConfigError: an unknown logger or setting.
    """
    name = config.logger.name
    loggers: list[Logger] = [CSVLogger(run_dir, name="", version="")]
    if name == "tensorboard":
        loggers.append(TensorBoardLogger(run_dir, name="", version="tensorboard"))
    elif name == "wandb":
        loggers.append(_wandb(config, run_dir))
    elif name != "csv":
        raise ConfigError(f"logger.name={name!r} is unknown{did_you_mean(name, ['csv', 'tensorboard', 'wandb'])}")
    return loggers


def _wandb(config: DictConfig, run_dir: Path) -> WandbLogger:
    options: dict[str, Any] = settings(config, "logger", "name", "mode")
    mode = config.logger.mode or os.environ.get("WANDB_MODE") or ("online" if _has_wandb_account() else "offline")
    if mode not in ("online", "offline", "disabled"):
        raise ConfigError(f"logger.mode={mode!r} must be online, offline or disabled")
    run_config = OmegaConf.to_container(config)
    return WandbLogger(save_dir=run_dir, name=run_dir.name, mode=mode, config=run_config, **options)


def _has_wandb_account() -> bool:
    """Whether W&B finds an API key; never asks for one, never goes to the network."""
    import wandb

    return wandb.login(prompt=False, verify=False)
