"""Settings of a run that are refused before anything is built."""

from omegaconf import DictConfig, OmegaConf

from noah_lightning.config.checks import whole_number
from noah_lightning.config.compose import typed
from noah_lightning.config.plain_yaml import pairs
from noah_lightning.config.ranges import HEADS, LOGGERS, RANGES, Check
from noah_lightning.errors import ConfigError


def check_settings(config: DictConfig) -> None:
    """Refuse what cannot work, would be found out after the last epoch, or never.

    Raises:
        ConfigError: a setting out of its range, or one that does not go with another.
    """
    given = dict(pairs(OmegaConf.to_container(config)))
    if missing := [key for key in ranges_of(config) if key not in given]:
        raise ConfigError(
            f"{missing[0]} is missing: it was taken away, or this is the configuration of another version"
        )
    check_each(config)
    _check_budget(config)
    _check_average(config)
    _check_recipe(config)


def check_each(config: DictConfig) -> None:
    """Refuse values that are out of their range whatever the others are; a setting may be missing.

    Raises:
        ConfigError: the first of them.
    """
    values = dict(pairs(OmegaConf.to_container(config)))
    for key, check in ranges_of(config).items():
        if key in values:
            check(key, values[key])


def ranges_of(config: DictConfig) -> dict[str, Check]:
    """The checks of all settings that a configuration should have, by their dotted keys."""
    head, logger = (str(OmegaConf.select(config, key)) for key in ("head.name", "logger.name"))
    return RANGES | HEADS.get(head, {"head.name": HEADS["gap"]["head.name"]}) | LOGGERS.get(logger, {})


def _check_budget(config: DictConfig) -> None:
    """Refuse a run that never validates."""
    trainer = config.trainer
    whole_number("trainer.check_val_every_n_epoch", trainer.check_val_every_n_epoch, 1, trainer.max_epochs)


def _check_average(config: DictConfig) -> None:
    """Refuse an average of the weights that would stand still."""
    precision = config.trainer.precision
    if config.recipe.ema is not None and precision in ("16-true", "bf16-true"):
        raise ConfigError(
            f"recipe.ema moves weights by less than trainer.precision={precision} can hold; "
            f"use {precision.replace('true', 'mixed')}"
        )


def _check_recipe(config: DictConfig) -> None:
    """Refuse what the dataclasses of the recipe refuse, and a schedule that the recipe's epochs do not hold.

    The recipe's own number of epochs counts, or the trainer's where that is larger: ``trainer.max_epochs=1`` breaks a
    recipe off to try it out.
    """
    from noah_lightning.data.transforms import AugmentSettings  # here, as torch and timm take seconds to import
    from noah_lightning.task import MixingSettings, OptimizerSettings, ScheduleSettings

    typed(OptimizerSettings, config, "recipe.optimizer")
    schedule = typed(ScheduleSettings, config, "recipe.schedule")
    typed(MixingSettings, config, "recipe.mixing")
    typed(AugmentSettings, config, "recipe.augment")
    epochs = max(config.recipe.epochs, config.trainer.max_epochs)
    instead = "; trainer.max_epochs alone breaks a recipe off" if epochs == config.recipe.epochs else ""
    if schedule.name == "step" and schedule.milestones[-1] >= epochs:
        raise ConfigError(
            f"recipe.schedule.milestones={schedule.milestones!r} must lie before the end, epoch {epochs}{instead}"
        )
    if schedule.warmup_epochs > epochs:
        raise ConfigError(
            f"recipe.schedule.warmup_epochs={schedule.warmup_epochs!r} must be at most the {epochs} epochs there "
            f"are{instead}"
        )
    if schedule.lag > epochs:
        raise ConfigError(f"recipe.schedule.lag={schedule.lag!r} must be at most the {epochs} epochs there are")
