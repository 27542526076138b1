"""Recorded configurations: the config.yaml of a run, which may come from an untrusted run directory."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from noah_lightning.config.compose import override
from noah_lightning.config.parsing import parse_config
from noah_lightning.config.plain_yaml import flat, pairs, read_yaml
from noah_lightning.config.processes import batch_per_process
from noah_lightning.config.schema import RunConfig
from noah_lightning.errors import ConfigError

NEEDED = ("model", "head", "data", "recipe", "trainer")
PATHS = (("data", "root"), ("model", "weights"))  # settings that name files
# Settings that a resumed run may change: where things are, who loads them, what ends the run.
FREE = ("data.root", "data.num_workers", "data.max_unreadable", "trainer.nonfinite", "logger.mode")
# How the images of a step are divided, which --force may change.
SPLIT = (
    *("recipe.batch_size", "data.batch_size", "trainer.devices", "trainer.num_nodes", "trainer.strategy"),
    "trainer.accumulate_grad_batches",
)


def as_yaml(config: RunConfig) -> str:
    """The text of config.yaml. Paths in it are absolute, so that they are valid in any folder."""
    return yaml.safe_dump(_plain(config), sort_keys=False)


def read_recorded(path: Path) -> dict[str, Any]:
    """The recorded settings, as groups within groups of plain values.

    Raises:
        ConfigError: the file is missing or not a run's configuration.
    """
    content = read_yaml(path)
    wrong = f"{path} is not a run's configuration"
    if missing := set(NEEDED) - content.keys():
        raise ConfigError(f"{wrong}: {', '.join(sorted(missing))} missing")
    for key, value in pairs(content):
        if key.rpartition(".")[2].startswith("_"):  # such as Hydra's _target_, which would name what to call
            raise ConfigError(f"{wrong}: unknown setting {key!r}")
        if not key.isprintable() or (isinstance(value, str) and not value.isprintable()):  # a terminal obeys some
            raise ConfigError(f"{wrong}: {key!r} has control characters")
        if "${" in key or (isinstance(value, str) and ("${" in value or value == "???")):
            # Ours are resolved; an untrusted one could read the environment.
            raise ConfigError(f"{wrong}: {key} refers to other settings by ${{…}}")
    return content


def parse_recorded(path: Path) -> RunConfig:
    """The recorded configuration: known settings, each in its range.

    Raises:
        ConfigError: as :func:`read_recorded`, an unknown setting, or one out of its range.
    """
    try:
        return parse_config(read_recorded(path))
    except ConfigError as error:
        raise ConfigError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from None


def parse_with(path: Path, overrides: Sequence[str], split_again: bool = False) -> RunConfig:
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
        config = config.replace("data", batch_size=batch_per_process(config.recipe.batch_size, config.trainer))
    if recorded.plugins and not any(pair.startswith("plugins=") for pair in overrides):
        names = ",".join(recorded.plugins)
        raise ConfigError(
            f"{path} asks for plugins=[{names}], whose code would run; if you trust it, add plugins=[{names}]"
        )
    name = recorded.model.name
    if ":" in name and not any(pair.startswith("model.name=") for pair in overrides):
        raise ConfigError(
            f"{path} asks for model.name={name}, which is not in timm's own list but fetched from elsewhere; if you "
            f"trust it, add model.name={name}"
        )
    return config


def check_same(path: Path, config: RunConfig, force: bool = False) -> None:
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


def _plain(config: RunConfig) -> dict[str, Any]:
    plain = config.model_dump()
    for group, name in PATHS:
        if isinstance(path := plain[group].get(name), str):
            plain[group][name] = os.path.abspath(os.path.expanduser(path))
    return plain
