"""Weights & Biases logger: name, id, group, tags and summary of a run."""

import hashlib
import os
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment

from noah_lightning.config.choices import NoahHeadSettings, WandbLoggerSettings
from noah_lightning.config.schema import RunConfig
from noah_lightning.errors import ConfigError, one_line
from noah_lightning.run_dir import SWEEP, Results

LONGEST_TAG = 64  # characters; W&B refuses longer ones


class WandbRun(WandbLogger):
    """Lightning's logger, with a method that finishes the run; only rank 0 writes."""

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """W&B's run, created at the first access; raises ConfigError if W&B rejects it or cannot be reached."""
        import wandb

        try:
            return super().experiment
        except wandb.Error as error:
            raise ConfigError(f"W&B: {one_line(error)}; logger.mode=offline needs no account or network") from error

    def close(self, results: Results | None) -> None:
        """Finish the run, if it was created: with the results in its summary, or as failed."""
        if self._experiment is None:
            return
        if results:
            self._experiment.summary.update(summary(results))
        self._experiment.finish(exit_code=0 if results else 1)


def make_wandb_run(config: RunConfig, run_dir: Path) -> WandbRun:
    """The W&B run of a run directory, not yet created.

    Raises:
        ConfigError: WANDB_MODE is not a valid mode.
    """
    settings = config.logger
    assert isinstance(settings, WandbLoggerSettings)
    mode = settings.mode or os.environ.get("WANDB_MODE") or ("online" if _has_account() else "offline")
    if mode not in ("online", "offline", "disabled"):
        raise ConfigError(f"WANDB_MODE={mode!r} must be online, offline or disabled")
    return WandbRun(
        save_dir=run_dir,
        name=run_name(config),
        id=run_id(run_dir),
        resume="allow",
        project=settings.project,
        entity=settings.entity,
        group=settings.group or sweep_name(run_dir),
        tags=tags(config),
        config=config.model_dump(),
        mode=mode,
    )


def run_name(config: RunConfig) -> str:
    """Such as ``resnet18-noah-N4-r0.5-seed0``; jobs that differ in other settings share it."""
    return "-".join([config.model.name, config.head.name, *_head_settings(config, ""), f"seed{config.seed}"])


def run_id(run_dir: Path) -> str:
    """W&B id, the same for every attempt in this directory, so that a resumed run continues its W&B run."""
    return hashlib.sha256(str(run_dir.resolve()).encode()).hexdigest()[:16]


def sweep_name(run_dir: Path) -> str | None:
    """Name of the sweep's folder, if the run is a job of a sweep."""
    folder = run_dir.resolve().parent
    return folder.name if (folder / SWEEP).is_file() else None


def tags(config: RunConfig) -> list[str]:
    """The user's tags, model, head and, for NOAH, N and r, without duplicates."""
    given = getattr(config.logger, "tags", None) or []
    own = [config.model.name[-LONGEST_TAG:], config.head.name, *_head_settings(config, "=")]
    return list(dict.fromkeys([*map(str, given), *own]))


def summary(results: Results) -> dict[str, float]:
    """Results of a finished run, by column of W&B's table of runs."""
    facts: dict[str, float] = {
        "parameters": results.parameters,
        "train_seconds": results.train_seconds,
        "images_per_second": results.images_per_second,
        "best/top1": results.top1,
        "best/epoch": results.best_epoch,
    }
    if results.ema_correct is not None:
        facts["best/ema_top1"] = 100 * results.ema_correct / results.images
    return facts


def _head_settings(config: RunConfig, equals: str) -> list[str]:
    """N and r of NOAH; other heads have none."""
    head = config.head
    return [f"N{equals}{head.head_num}", f"r{equals}{head.key_ratio:g}"] if isinstance(head, NoahHeadSettings) else []


def _has_account() -> bool:
    """Whether W&B finds an API key, without a prompt and without network access."""
    import wandb

    return wandb.login(prompt=False, verify=False)
