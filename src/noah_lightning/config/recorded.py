"""Recorded configurations: the config.yaml of a run directory, which may be untrusted.

Nothing in the file is executed, and memory is bounded: PyYAML's parser in C crashes on a few thousand brackets, and a
few hundred bytes of aliases can expand to gigabytes.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from noah_lightning.config.compose import dotted, override
from noah_lightning.config.parsing import parse
from noah_lightning.config.schema import RunConfig, batch_per_process
from noah_lightning.errors import ConfigError, one_line

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
LARGEST, DEEPEST = 1_000_000, 20  # bytes, and levels of nesting; our files have a few thousand bytes and four levels
NEEDED = ("model", "head", "data", "recipe", "trainer")
PATHS = (("data", "root"), ("model", "weights"))  # settings that name files
# Settings that may change when a run resumes.
FREE = (
    *("data.root", "data.num_workers", "data.max_unreadable", "trainer.nonfinite", "logger.mode"),
    *("attention.curve_images", "attention.picture_every_n_epochs", "attention.picture_images"),
)
# Settings that divide a step, which may change with --force.
SPLIT = (
    *("recipe.batch_size", "data.batch_size", "trainer.devices", "trainer.num_nodes", "trainer.strategy"),
    "trainer.accumulate_grad_batches",
)


def as_yaml(config: RunConfig) -> str:
    """Text of config.yaml; paths are absolute, so that they are valid in any folder."""
    return yaml.safe_dump(_plain(config), sort_keys=False)


def read_recorded(path: Path) -> dict[str, Any]:
    """The recorded settings: strings, numbers, booleans, null, and lists and mappings of these.

    Raises:
        ConfigError: the file cannot be read, is not YAML, has values of other types, or is not a run's configuration.
    """
    wrong = f"{path} is not a run's configuration"
    try:
        if path.stat().st_size > LARGEST:
            raise ConfigError(f"{wrong}: it has more than {LARGEST:,} bytes")
        text = path.read_text(encoding="utf-8")
        _require_flat(text)
        content = yaml.load(text, _LOADER)
        nodes = list(_plain_nodes(content))
    except (OSError, ValueError, yaml.YAMLError) as error:  # ValueError: also an invalid date or number
        raise ConfigError(f"{path} is not valid YAML: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{wrong}: it has no settings")
    if missing := set(NEEDED) - content.keys():
        raise ConfigError(f"{wrong}: {', '.join(sorted(missing))} missing")
    for key, value in nodes:
        if key.rpartition(".")[2].startswith("_"):  # such as Hydra's _target_, which names a function to call
            raise ConfigError(f"{wrong}: unknown setting {key!r}")
        if not key.isprintable() or (isinstance(value, str) and not value.isprintable()):  # a terminal executes some
            raise ConfigError(f"{wrong}: {key!r} has control characters")
        if "${" in key or (isinstance(value, str) and ("${" in value or value == "???")):
            # Recorded settings are resolved; an interpolation could read the environment.
            raise ConfigError(f"{wrong}: {key} refers to other settings with ${{…}}")
    data = content["data"]
    if isinstance(data, dict) and data.get("name") in ("imagefolder", "imagenet", "packed"):
        data.setdefault("exif_orientation", False)  # a run from before the setting read all images as stored
    if "attention" not in content:  # a run from before the group, with pictures in W&B only, and no curves
        logger = content.get("logger")
        every = logger.pop("picture_every_n_epochs", 0) if isinstance(logger, dict) else 0
        content["attention"] = {"curve_images": 0, "picture_every_n_epochs": every}
    return content


def _require_flat(text: str) -> None:
    """Raise ValueError for aliases and deep nesting."""
    depth = 0
    for event in yaml.parse(text, _LOADER):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ValueError(f"more than {DEEPEST} groups within each other")
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"it refers to another part of itself (*{event.anchor})")


def _plain_nodes(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each value with its dotted key, also in lists; raises ValueError for dates, bytes and other types."""
    if not isinstance(tree, dict | list):
        if tree is not None and not isinstance(tree, str | int | float):
            raise ValueError(f"{tree!r} is neither a number nor a string")
        return
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        if isinstance(tree, dict) and not isinstance(key, str):
            raise ValueError(f"the key {key!r} is not a string")
        yield f"{prefix}{key}", value
        yield from _plain_nodes(value, f"{prefix}{key}.")


def flat(tree: Any) -> dict[str, Any]:
    """The settings by dotted key, without the groups; a list is one value."""
    return {key: value for key, value in dotted(tree) if not isinstance(value, dict)}


def with_defaults(content: dict[str, Any]) -> dict[str, Any]:
    """The settings with defaults for those that are missing; as they are if they are not valid in this version."""
    try:
        return parse(RunConfig, content).model_dump()
    except ConfigError:
        return content


def parse_recorded(path: Path) -> RunConfig:
    """The recorded configuration; raises ConfigError as :func:`read_recorded`, and as :func:`parse`."""
    content = read_recorded(path)
    try:
        return parse(RunConfig, content)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


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
    old, new = (flat(_plain(one)) for one in (parse_recorded(path), config))
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
