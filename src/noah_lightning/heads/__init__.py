"""Classification heads over a feature map (B, C, L), by name.

A head is an ``nn.Module`` built from ``(in_channels, num_classes, **settings)`` that maps (B, C, L) to (B, K).
Decorate its class with :func:`register_head`, in a file of this package or in any module that is imported; or name it
in an installed package as an entry point of the group ``noah_lightning.heads``, which is loaded on first use.
"""

import inspect
import pkgutil
from collections.abc import Callable
from importlib import import_module, metadata
from typing import Any, TypeVar

from torch import nn

from noah_lightning.errors import ConfigError, HeadSettingError, did_you_mean, one_line

__all__ = ["NOAHHead", "head_names", "make_head", "register_head"]

ENTRY_POINTS = "noah_lightning.heads"
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
        ConfigError: the head of an installed package cannot be loaded.
    """
    if name not in _HEADS:
        installed = {entry.name: entry for entry in metadata.entry_points(group=ENTRY_POINTS)}
        if name not in installed:
            raise HeadSettingError(f"no head is called {name!r}{did_you_mean(name, ['gap', *_HEADS, *installed])}")
        _load(installed[name])
    head = _HEADS[name]
    known = [key for key in inspect.signature(head).parameters if key not in ("in_channels", "num_classes")]
    for key in settings:
        if key not in known:
            raise HeadSettingError(f"head {name!r} has no setting {key!r}{did_you_mean(key, known)}")
    return head(in_channels, num_classes, **settings)


def _load(entry: metadata.EntryPoint) -> None:
    """Register the head of an entry point: the class that it names, or what its module registers."""
    try:
        loaded = entry.load()
    except Exception as error:  # importing another package can fail in any way
        raise ConfigError(f"head {entry.name!r} cannot be loaded from {entry.value}: {one_line(error)}") from error
    if entry.name not in _HEADS:
        if not (isinstance(loaded, type) and issubclass(loaded, nn.Module)):
            raise ConfigError(f"{entry.value} does not give the head {entry.name!r}: it is not a class of nn.Module")
        register_head(entry.name)(loaded)


for _module in pkgutil.iter_modules(__path__):  # every file here is a head, and importing it registers it
    if not _module.ispkg:
        import_module(f"{__name__}.{_module.name}")

from noah_lightning.heads.noah import NOAHHead  # noqa: E402  # needs register_head
