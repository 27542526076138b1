"""Loggers of a run: always ``metrics.csv`` in the run directory, and optionally TensorBoard or Weights & Biases."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment

from noah_lightning.config.choices import WandbLoggerSettings
from noah_lightning.config.heads import NoahHeadSettings
from noah_lightning.config.results import Results
from noah_lightning.config.schema import RunConfig
from noah_lightning.errors import ConfigError, one_line
from noah_lightning.loggers.metrics_csv import MetricsFile
from noah_lightning.run_dir import SWEEP

LONGEST_TAG = 64  # characters; maximum of W&B


def make_loggers(config: RunConfig, run_dir: Path) -> list[Logger]:
    """The CSV logger and the one named by ``config.logger.name``."""
    loggers: list[Logger] = [MetricsFile(run_dir)]
    if config.logger.name == "tensorboard":
        loggers.append(TensorBoardLogger(run_dir, name="", version="tensorboard"))
    elif config.logger.name == "wandb":
        loggers.append(WandbRun(config, run_dir))
    return loggers


def close_loggers(loggers: Sequence[Logger], results: Results | None) -> None:
    """Finish the W&B run, so that the next run in this process starts its own; without ``results`` it is failed."""
    for logger in loggers:
        if isinstance(logger, WandbRun):
            logger.close(results)


def takes_pictures(logger: Logger) -> bool:
    """Whether :func:`log_picture` does anything; metrics.csv has no place for a picture."""
    return isinstance(logger, TensorBoardLogger | WandbLogger)


def log_picture(logger: Logger, name: str, picture: np.ndarray, step: int, caption: str) -> None:
    """Log an RGB picture, uint8 (height, width, 3), to TensorBoard or W&B; ``caption`` is for W&B."""
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(name, picture, step, dataformats="HWC")
    elif isinstance(logger, WandbLogger):
        logger.log_image(name, [picture], step=step, caption=[caption])


class WandbRun(WandbLogger):
    """The W&B run of a run directory; only rank 0 writes.

    Raises:
        ConfigError: WANDB_MODE is not a valid mode.
    """

    def __init__(self, config: RunConfig, run_dir: Path) -> None:
        settings = config.logger
        assert isinstance(settings, WandbLoggerSettings)
        mode = settings.mode or os.environ.get("WANDB_MODE") or ("online" if _has_account() else "offline")
        if mode not in ("online", "offline", "disabled"):
            raise ConfigError(f"WANDB_MODE={mode!r} must be online, offline or disabled")
        folder = run_dir.resolve().parent
        super().__init__(
            save_dir=run_dir,
            name=run_name(config),
            id=run_id(run_dir),
            resume="allow",
            project=settings.project,
            entity=settings.entity,
            group=settings.group or (folder.name if (folder / SWEEP).is_file() else None),
            tags=tags(config),
            config=config.model_dump(),
            mode=mode,
        )
        self._wandb_init.pop("anonymous", None)  # W&B warns of it, even if it is not set

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """W&B's run, created at the first access; raises ConfigError if W&B rejects it or cannot be reached."""
        import wandb

        try:
            return super().experiment
        except wandb.Error as error:
            raise refused(error, "logger.mode=offline needs no account or network") from error

    def close(self, results: Results | None) -> None:
        """Finish the run, if it was created: with the results in its summary, or as failed."""
        if self._experiment is None:
            return
        if results:
            summary: dict[str, float] = {
                "parameters": results.parameters,
                "train_seconds": results.train_seconds,
                "images_per_second": results.images_per_second,
                f"best/{'map' if results.multilabel else 'top1'}": results.score,
                "best/epoch": results.best_epoch,
            }
            if results.ema_correct is not None:
                summary["best/ema_top1"] = 100 * results.ema_correct / results.images
            if results.ema_map is not None:
                summary["best/ema_map"] = results.ema_map
            self._experiment.summary.update(summary)
        self._experiment.finish(exit_code=0 if results else 1)


def refused(error: Exception, advice: str) -> ConfigError:
    """An error of W&B as one line, with ``advice`` only if an account or a network is missing."""
    from wandb.errors import CommError

    offline = isinstance(error, CommError | OSError) or "api_key" in str(error).lower().replace(" ", "_")
    return ConfigError(f"W&B: {one_line(error)}{f'; {advice}' if offline else ''}")


def run_name(config: RunConfig) -> str:
    """Such as ``resnet18-noah-N4-r0.5-seed0``; jobs that differ in other settings share it."""
    return "-".join([config.model.name, config.head.name, *_head_settings(config, ""), f"seed{config.seed}"])


def run_id(run_dir: Path) -> str:
    """W&B id, the same for every attempt in this directory, so that a resumed run continues its W&B run."""
    return hashlib.sha256(str(run_dir.resolve()).encode()).hexdigest()[:16]


def tags(config: RunConfig) -> list[str]:
    """The user's tags, model, head and, for NOAH, N and r, without duplicates."""
    given = getattr(config.logger, "tags", None) or []
    own = [config.model.name[-LONGEST_TAG:], config.head.name, *_head_settings(config, "=")]
    return list(dict.fromkeys([*map(str, given), *own]))


def _head_settings(config: RunConfig, equals: str) -> list[str]:
    """N and r of NOAH; other heads have none."""
    head = config.head
    return [f"N{equals}{head.head_num}", f"r{equals}{head.key_ratio:g}"] if isinstance(head, NoahHeadSettings) else []


def _has_account() -> bool:
    """Whether W&B finds an API key, without a prompt and without network access."""
    import wandb

    return wandb.login(prompt=False, verify=False)
