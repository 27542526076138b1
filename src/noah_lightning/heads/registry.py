"""Heads by name, so that one word of configuration swaps them."""

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

from noah_lightning.config.plugins import load_installed_plugins
from noah_lightning.errors import HeadSettingError, did_you_mean

HeadClass = TypeVar("HeadClass", bound=type[nn.Module])

_HEADS: dict[str, type[nn.Module]] = {}


def register_head(name: str) -> Callable[[HeadClass], HeadClass]:
    """Class decorator that makes a head known under ``name``; a name taken twice is a ``ValueError``."""

    def add(head: HeadClass) -> HeadClass:
        if name in _HEADS:
            raise ValueError(f"a head named {name!r} exists already: {_HEADS[name]}")
        _HEADS[name] = head
        return head

    return add


def head_names() -> list[str]:
    """Names of the registered heads. ``gap`` is none of them: it is the backbone's own classifier."""
    return sorted(_HEADS)


def make_head(name: str, in_channels: int, num_classes: int, **settings: Any) -> nn.Module:
    """Build the head ``name`` for feature maps of width ``in_channels``.

    Raises:
        HeadSettingError: unknown head, or a setting the head does not have or cannot work with.
    """
    if name not in _HEADS:
        load_installed_plugins()
    if name not in _HEADS:
        raise HeadSettingError(f"no head is called {name!r}{did_you_mean(name, ['gap', *_HEADS])}")
    known = [key for key in inspect.signature(_HEADS[name]).parameters if key not in ("in_channels", "num_classes")]
    for key in settings:
        if key not in known:
            raise HeadSettingError(f"head {name!r} has no setting {key!r}{did_you_mean(key, known)}")
    return _HEADS[name](in_channels, num_classes, **settings)
