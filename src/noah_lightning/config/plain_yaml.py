"""Reader of untrusted YAML files: plain values, or one clear error.

Nothing is executed, and memory is bounded: PyYAML's parser in C crashes on a few thousand brackets, and a few hundred
bytes of aliases can expand to gigabytes.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeGuard

import yaml

from noah_lightning.errors import ConfigError, one_line

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
LARGEST, DEEPEST = 1_000_000, 20  # bytes, and levels of nesting; our files have a few thousand bytes and four levels
_BEGIN = (yaml.MappingStartEvent, yaml.SequenceStartEvent)
_END = (yaml.MappingEndEvent, yaml.SequenceEndEvent)


def read_yaml(path: Path) -> dict[str, Any]:
    """The settings in a file: strings, numbers, booleans, null, and lists and mappings of these.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or has values of other types.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise ConfigError(f"{path} is not a run's configuration: it has more than {LARGEST:,} bytes")
        text = path.read_text(encoding="utf-8")
        _require_flat(text)
        content = yaml.load(text, _LOADER)
        _require_plain(content)
    except (OSError, ValueError, yaml.YAMLError) as error:  # ValueError: also an invalid date or number
        raise ConfigError(f"{path} is not valid YAML: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} is not a run's configuration: it has no settings")
    return content


def _require_flat(text: str) -> None:
    """Raise ValueError for aliases and deep nesting."""
    depth = 0
    for event in yaml.parse(text, _LOADER):
        depth += isinstance(event, _BEGIN) - isinstance(event, _END)
        if depth > DEEPEST:
            raise ValueError(f"more than {DEEPEST} groups within each other")
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"it refers to another part of itself (*{event.anchor})")


def _require_plain(value: object) -> None:
    """Raise ValueError for values of other types, such as dates and bytes, and for keys that are not strings."""
    if isinstance(value, dict):
        for key, part in value.items():
            if not isinstance(key, str):
                raise ValueError(f"the key {key!r} is not a string")
            _require_plain(part)
    elif isinstance(value, list):
        for part in value:
            _require_plain(part)
    elif value is not None and not isinstance(value, str | int | float):
        raise ValueError(f"{value!r} is neither a number nor a string")


def pairs(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value with its dotted key, including groups and lists."""
    inside = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in inside:
        yield f"{prefix}{key}", value
        if isinstance(value, dict | list):
            yield from pairs(value, f"{prefix}{key}.")


def flat(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting with its dotted key; a list is one value."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def is_number(value: object) -> TypeGuard[float]:
    """Whether it is a number; true and false are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)
