"""Recorded configurations: the config.yaml of a run directory, which may be untrusted."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from noah_lightning.config.compose import override
from noah_lightning.config.parsing import parse_config
from noah_lightning.config.plain_yaml import flat, pairs, read_yaml
from noah_lightning.config.schema import RunConfig
from noah_lightning.config.trainer import batch_per_process
from noah_lightning.errors import ConfigError

NEEDED = ("model", "head", "data", "recipe", "trainer")
PATHS = (("data", "root"), ("model", "weights"))  # settings that name files
# Settings that may change when a run resumes.
FREE = ("data.root", "data.num_workers", "data.max_unreadable", "trainer.nonfinite", "logger.mode")
# Settings that divide a step, which may change with --force.
SPLIT = (
    *("recipe.batch_size", "data.batch_size", "trainer.devices", "trainer.num_nodes", "trainer.strategy"),
    "trainer.accumulate_grad_batches",
)


def as_yaml(config: RunConfig) -> str:
    """Text of config.yaml; paths are absolute, so that they are valid in any folder."""
    return yaml.safe_dump(_plain(config), sort_keys=False)


def read_recorded(path: Path) -> dict[str, Any]:
    """The recorded settings as nested plain values; raises ConfigError unless it is a run's configuration."""
    content = read_yaml(path)
    wrong = f"{path} is not a run's configuration"
    if missing := set(NEEDED) - content.keys():
        raise ConfigError(f"{wrong}: {', '.join(sorted(missing))} missing")
    for key, value in pairs(content):
        if key.rpartition(".")[2].startswith("_"):  # such as Hydra's _target_, which names a function to call
            raise ConfigError(f"{wrong}: unknown setting {key!r}")
        if not key.isprintable() or (isinstance(value, str) and not value.isprintable()):  # a terminal executes some
            raise ConfigError(f"{wrong}: {key!r} has control characters")
        if "${" in key or (isinstance(value, str) and ("${" in value or value == "???")):
            # Recorded settings are resolved; an interpolation could read the environment.
            raise ConfigError(f"{wrong}: {key} refers to other settings with ${{…}}")
    return content


def parse_recorded(path: Path) -> RunConfig:
    """The recorded configuration, parsed.

    Raises:
        ConfigError: as :func:`read_recorded`, or a setting is unknown or out of range.
    """
    try:
        return parse_config(read_recorded(path))
    except ConfigError as error:
        raise ConfigError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from None


def parse_with(path: Path, overrides: Sequence[str], split_again: bool = False) -> RunConfig:
    """The recorded configuration with ``overrides``; ``split_again`` divides the batch among the processes again.

    Raises:
        ConfigError: as :func:`parse_recorded`, invalid overrides, or a plug-in or downloaded model that is not named
            in ``overrides``.
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
            f"{path} requires plugins=[{names}], whose code would be run; if you trust it, add plugins=[{names}]"
        )
    name = recorded.model.name
    if ":" in name and not any(pair.startswith("model.name=") for pair in overrides):
        raise ConfigError(
            f"{path} requires model.name={name}, which is not one of timm's models but would be downloaded; if you "
            f"trust it, add model.name={name}"
        )
    return config


def check_same(path: Path, config: RunConfig, force: bool = False) -> None:
    """Raise ConfigError for changed settings; with ``force`` the batch may be divided differently."""
    free = (*FREE, *SPLIT) if force else FREE
    old, new = (dict(flat(_plain(one))) for one in (parse_recorded(path), config))
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key) and key not in free:
            may = "with --force, which restarts the epoch" if key in SPLIT else f"only in {', '.join(FREE)}"
            raise ConfigError(
                f"{path.parent} was started with {key}={old.get(key)}, not {new.get(key)}; a run resumes with its "
                f"own settings, changes are accepted {may}"
            )


def _plain(config: RunConfig) -> dict[str, Any]:
    plain = config.model_dump()
    for group, name in PATHS:
        if isinstance(path := plain[group].get(name), str):
            plain[group][name] = os.path.abspath(os.path.expanduser(path))
    return plain
