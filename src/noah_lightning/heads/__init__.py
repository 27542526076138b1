"""Classification heads over a feature map (B, C, L), by name.

A head is an ``nn.Module`` built from ``(in_channels, num_classes, **settings)`` that maps (B, C, L) to (B, K).
Its class is decorated with :func:`register_head`, in the file of this package that has its name or in a plug-in
(``config/plugins.py``). A class with ``reads_class_token = True`` is called as ``head(features, class_token)``, with
the class token (B, C) of a ViT.
"""

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeVar

from torch import nn

from noah_lightning.config.heads import SETTINGS
from noah_lightning.config.parsing import parse
from noah_lightning.config.plugins import load_installed_plugins
from noah_lightning.errors import ConfigError, HeadSettingError, did_you_mean

__all__ = ["NOAHHead", "head_class", "head_names", "make_head", "register_head"]

HeadClass = TypeVar("HeadClass", bound=type[nn.Module])
_HEADS: dict[str, type[nn.Module]] = {}


def register_head(name: str) -> Callable[[HeadClass], HeadClass]:
    """Class decorator that registers a head under ``name``; registering a name twice is a ``ValueError``."""

    def add(head: HeadClass) -> HeadClass:
        if name in _HEADS or (name in SETTINGS and not head.__module__.startswith(__name__)):
            raise ValueError(f"a head named {name!r} exists already: {_HEADS.get(name, 'one of this package')}")
        _HEADS[name] = head
        return head

    return add


def head_names() -> list[str]:
    """Names of the heads of this package and of loaded plug-ins; ``gap`` is the backbone's own classifier."""
    return sorted({*SETTINGS, *_HEADS} - {"gap"})


def head_class(name: str) -> type[nn.Module]:
    """The class of the head ``name``; a head of this package is imported when it is first asked for.

    Raises:
        HeadSettingError: unknown head.
        ConfigError: an installed plug-in cannot be imported.
    """
    if name in SETTINGS and name != "gap":
        import_module(f"{__name__}.{name}")
    elif name not in _HEADS:
        load_installed_plugins()
    if name not in _HEADS:
        raise HeadSettingError(f"no head is called {name!r}{did_you_mean(name, ['gap', *head_names()])}")
    return _HEADS[name]


def make_head(name: str, in_channels: int, num_classes: int, **settings: Any) -> nn.Module:
    """Build the head ``name`` for feature maps of width ``in_channels``.

    Raises:
        HeadSettingError: unknown head, or a setting the head does not have or cannot work with.
        ConfigError: an installed plug-in cannot be imported.
    """
    head = head_class(name)
    known = list(inspect.signature(head).parameters)[2:]  # after in_channels and num_classes
    for key in settings:
        if key not in known:
            raise HeadSettingError(f"head {name!r} has no setting {key!r}{did_you_mean(key, known)}")
    if name in SETTINGS:
        try:
            parse(SETTINGS[name], settings, "head")
        except ConfigError as error:
            raise HeadSettingError(str(error)) from None
    return head(in_channels, num_classes, **settings)


from noah_lightning.heads.noah import NOAHHead  # noqa: E402  # needs register_head
