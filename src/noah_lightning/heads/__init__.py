"""Classification heads over a feature map (B, C, L), by name.

A head is an ``nn.Module`` built from ``(in_channels, num_classes, **settings)`` that maps (B, C, L) to (B, K).
Its class is decorated with :func:`register_head`, in a file of this package or in a plug-in (``config/plugins.py``).
"""

import inspect
import pkgutil
from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeVar

from torch import nn

from noah_lightning.config.plugins import load_installed_plugins
from noah_lightning.errors import HeadSettingError, did_you_mean

__all__ = ["NOAHHead", "head_names", "make_head", "register_head"]

HeadClass = TypeVar("HeadClass", bound=type[nn.Module])
_HEADS: dict[str, type[nn.Module]] = {}


def register_head(name: str) -> Callable[[HeadClass], HeadClass]:
    """Class decorator that registers a head under ``name``; registering a name twice is a ``ValueError``."""

    def add(head: HeadClass) -> HeadClass:
        if name in _HEADS:
            raise ValueError(f"a head named {name!r} exists already: {_HEADS[name]}")
        _HEADS[name] = head
        return head

    return add


def head_names() -> list[str]:
    """Names of the registered heads; ``gap`` is not one of them: it is the backbone's own classifier."""
    return sorted(_HEADS)


def make_head(name: str, in_channels: int, num_classes: int, **settings: Any) -> nn.Module:
    """Build the head ``name`` for feature maps of width ``in_channels``.

    Raises:
        HeadSettingError: unknown head, or a setting the head does not have or cannot work with.
        ConfigError: an installed plug-in cannot be imported.
    """
    if name not in _HEADS:
        load_installed_plugins()
    if name not in _HEADS:
        raise HeadSettingError(f"no head is called {name!r}{did_you_mean(name, ['gap', *_HEADS])}")
    head = _HEADS[name]
    known = list(inspect.signature(head).parameters)[2:]  # after in_channels and num_classes
    for key in settings:
        if key not in known:
            raise HeadSettingError(f"head {name!r} has no setting {key!r}{did_you_mean(key, known)}")
    return head(in_channels, num_classes, **settings)


for _module in pkgutil.iter_modules(__path__):  # each file here is a head, which its import registers
    import_module(f"{__name__}.{_module.name}")

from noah_lightning.heads.noah import NOAHHead  # noqa: E402  # needs register_head
