"""Settings of a run that are refused before anything is built, and before torch is imported."""

import math

from omegaconf import DictConfig, OmegaConf

from noah_lightning.checks import flag, positive, whole_number
from noah_lightning.errors import ConfigError


def check_settings(config: DictConfig) -> None:
    """Refuse what would be found out after the last epoch, or never.

    Raises:
        ConfigError: a setting out of its range.
    """
    _check_budget(config)
    _check_recipe(config)


def _check_budget(config: DictConfig) -> None:
    """Refuse a run that never trains or never validates."""
    trainer = config.trainer
    whole_number("seed", config.seed, low=0, high=2**32 - 1)
    whole_number("trainer.max_epochs", trainer.max_epochs, low=1, high=10**6)
    whole_number("trainer.check_val_every_n_epoch", trainer.check_val_every_n_epoch, 1, trainer.max_epochs)
    whole_number("trainer.log_every_n_steps", trainer.log_every_n_steps, low=1)
    whole_number("trainer.accumulate_grad_batches", trainer.accumulate_grad_batches, low=1)
    checkpoint = config.checkpoint
    whole_number("checkpoint.every_n_steps", checkpoint.every_n_steps, low=1)
    whole_number("checkpoint.keep", checkpoint.keep, low=1)
    positive("checkpoint.every_minutes", checkpoint.every_minutes)
    for key in ("channels_last", "compile"):
        flag(f"trainer.{key}", trainer[key])
    for key in ("limit_train_batches", "limit_val_batches"):
        if trainer[key] == 0:
            raise ConfigError(f"trainer.{key}=0 leaves nothing to do; give a number of batches, or null for all")


def _check_recipe(config: DictConfig) -> None:
    """Refuse what would otherwise be left out without a word, or stand still."""
    flag("recipe.equal_dropout", config.recipe.equal_dropout)  # of which only the baseline takes notice
    for key in ("recipe.gradient_clip", "trainer.gradient_clip_val"):  # the second follows the first, unless set
        norm = OmegaConf.select(config, key)
        is_number = isinstance(norm, int | float) and not isinstance(norm, bool)
        if norm is not None and not (is_number and 0 < norm < math.inf):
            raise ConfigError(f"{key}={norm!r} must be a number above 0, or null for no clipping")
    precision = config.trainer.precision
    if config.recipe.ema is not None and precision in ("16-true", "bf16-true"):
        raise ConfigError(
            f"recipe.ema moves weights by less than trainer.precision={precision} can hold; "
            f"use {precision.replace('true', 'mixed')}"
        )
