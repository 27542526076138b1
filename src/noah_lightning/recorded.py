"""The settings that a run directory holds. Anybody may have written them, so they are read as a stranger's.

They are data: nothing in them is resolved, imported or fetched.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from noah_lightning.errors import ConfigError
from noah_lightning.plain_yaml import read_yaml
from noah_lightning.run_files import CONFIG

NEEDED = ("model", "head", "data", "recipe", "trainer")
GROUPS = {"seed", "checkpoint", "logger", *NEEDED}


def read_recorded(run_dir: Path) -> dict[str, Any]:
    """The settings in a run directory, as they stand there.

    Raises:
        ConfigError: a file that is not ours.
    """
    path = run_dir / CONFIG
    content = read_yaml(path)
    missing = set(NEEDED) - content.keys()
    if missing:
        raise ConfigError(f"{path} is no run's configuration: {', '.join(sorted(missing))} missing")
    for group in sorted(GROUPS & content.keys() - {"seed"}):
        if not isinstance(content[group], dict):
            raise ConfigError(f"{path} is no run's configuration: {group} is no group of settings")
    for key, value in pairs(content):
        name = key.rpartition(".")[2]
        if name.startswith("_"):  # such as Hydra's _target_, which would name what to call
            raise ConfigError(f"{path} is no run's configuration: there is no setting {key!r}")
        if not key.isprintable() or (isinstance(value, str) and not value.isprintable()):  # a terminal obeys some
            raise ConfigError(f"{path} is no run's configuration: {key!r} has control characters")
        if "${" in key or (isinstance(value, str) and ("${" in value or value == "???")):
            # Ours are resolved; a stranger's could read the environment.
            raise ConfigError(f"{path} is no run's configuration: {key} refers to other settings by ${{…}}")
    return content


def pairs(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value by its dotted key, groups and lists too."""
    inside = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in inside:
        yield f"{prefix}{key}", value
        if isinstance(value, dict | list):
            yield from pairs(value, f"{prefix}{key}.")


def flat(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting by its dotted key; a list is one value."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
