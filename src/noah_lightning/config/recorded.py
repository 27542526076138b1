"""Recorded configurations: the config.yaml of a run, which may come from an untrusted run directory."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError
from yaml import safe_load

from noah_lightning.config.compose import config_dir, override
from noah_lightning.config.plain_yaml import flat, pairs, read_yaml
from noah_lightning.config.processes import batch_per_process
from noah_lightning.config.settings import check_each
from noah_lightning.errors import ConfigError, did_you_mean

NEEDED = ("model", "head", "data", "recipe", "trainer")
GROUPS = {"seed", "checkpoint", "logger", *NEEDED}
PATHS = (("data", "root"), ("model", "weights"))  # settings that name files
# Settings that a resumed run may change: where things are, who loads them, what ends the run.
FREE = ("data.root", "data.num_workers", "data.max_unreadable", "trainer.nonfinite", "logger.mode")
# How the images of a step are divided, which --force may change.
SPLIT = (
    *("recipe.batch_size", "data.batch_size", "trainer.devices", "trainer.num_nodes", "trainer.strategy"),
    "trainer.accumulate_grad_batches",
)


def as_yaml(config: DictConfig) -> str:
    """The text of config.yaml. Paths in it are absolute, so that they are valid in any folder."""
    return OmegaConf.to_yaml(_plain(config))


def read_recorded(path: Path) -> dict[str, Any]:
    """The recorded settings, as groups within groups of plain values.

    Raises:
        ConfigError: the file is missing or not a run's configuration.
    """
    content = read_yaml(path)
    wrong = f"{path} is not a run's configuration"
    if missing := set(NEEDED) - content.keys():
        raise ConfigError(f"{wrong}: {', '.join(sorted(missing))} missing")
    for group in sorted(GROUPS & content.keys() - {"seed"}):
        if not isinstance(content[group], dict):
            raise ConfigError(f"{wrong}: {group} is not a group of settings")
    for key, value in pairs(content):
        if key.rpartition(".")[2].startswith("_"):  # such as Hydra's _target_, which would name what to call
            raise ConfigError(f"{wrong}: unknown setting {key!r}")
        if not key.isprintable() or (isinstance(value, str) and not value.isprintable()):  # a terminal obeys some
            raise ConfigError(f"{wrong}: {key!r} has control characters")
        if "${" in key or (isinstance(value, str) and ("${" in value or value == "???")):
            # Ours are resolved; an untrusted one could read the environment.
            raise ConfigError(f"{wrong}: {key} refers to other settings by ${{…}}")
    return content


def parse_recorded(path: Path) -> DictConfig:
    """The recorded configuration: known settings, each in its range.

    Raises:
        ConfigError: as :func:`read_recorded`, an unknown setting, or one out of its range.
    """
    content = read_recorded(path)
    for group, known in (("", GROUPS), ("trainer", _keys("trainer/default")), ("model", _keys("model/timm"))):
        for key in content[group] if group else content:
            if key not in known:
                name = f"{group}.{key}" if group else key
                raise ConfigError(f"{path}: unknown setting {name!r}{did_you_mean(key, known)}")
    config = OmegaConf.create(content)
    OmegaConf.set_struct(config, True)
    try:
        check_each(config)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return config


def parse_with(path: Path, overrides: Sequence[str], split_again: bool = False) -> DictConfig:
    """The recorded configuration with ``key=value`` pairs set.

    With ``split_again`` the batch of the recipe is divided among the processes that there are then.

    Raises:
        ConfigError: as :func:`parse_recorded`, pairs that do not fit, or a model that has to be fetched from
            elsewhere and is not named in ``overrides``.
    """
    recorded = parse_recorded(path)
    config = override(recorded, overrides)
    if split_again:
        if any(pair.startswith("data.batch_size=") for pair in overrides):
            raise ConfigError("data.batch_size follows from recipe.batch_size and the processes; change these")
        batch = batch_per_process(config.recipe.batch_size, config.trainer)
        config = override(config, [f"data.batch_size={batch}"])
    check_each(config)
    name = recorded.model.name
    if ":" in name and not any(pair.startswith("model.name=") for pair in overrides):
        raise ConfigError(
            f"{path} asks for model.name={name}, which is not in timm's own list but fetched from elsewhere; if you "
            f"trust it, add model.name={name}"
        )
    return config


def check_same(path: Path, config: DictConfig, force: bool = False) -> None:
    """Refuse settings other than the recorded ones; with ``force`` the batch may be divided otherwise.

    Raises:
        ConfigError: as :func:`parse_recorded`, or the settings differ.
    """
    free = (*FREE, *SPLIT) if force else FREE
    begun, now = (dict(flat(_plain(one))) for one in (parse_recorded(path), config))
    for key in sorted(begun.keys() | now.keys()):
        if begun.get(key) != now.get(key) and key not in free:
            may = "with --force, which restarts the epoch" if key in SPLIT else f"only in {', '.join(FREE)}"
            raise ConfigError(
                f"{path.parent} was started with {key}={begun.get(key)}, not {now.get(key)}; a run resumes with its "
                f"own settings, others are accepted {may}"
            )


@contextmanager
def missing_settings_named(path: Path) -> Iterator[None]:
    """A setting that the recorded configuration lacks becomes a ConfigError that names it."""
    try:
        yield
    except (ConfigAttributeError, ConfigKeyError) as error:
        raise ConfigError(
            f"{path}: {error.full_key} is missing: this is the configuration of another version"
        ) from error


def _plain(config: DictConfig) -> dict[str, Any]:
    plain: Any = OmegaConf.to_container(config)
    for group, name in PATHS:
        if isinstance(path := plain[group].get(name), str):
            plain[group][name] = os.path.abspath(os.path.expanduser(path))
    return dict(plain)


@cache
def _keys(file: str) -> frozenset[str]:
    """The settings that a file of ``conf`` lists."""
    return frozenset(safe_load((config_dir() / f"{file}.yaml").read_text())) - {"defaults"}
