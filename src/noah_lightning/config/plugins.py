"""Plug-ins: a user's own Python modules, which register heads, backbones and data sets when they are imported.

They are found in two ways: ``plugins=[mymodule]`` names modules in the current folder or on the Python path, and an
installed package may name its module in the entry-point group ``noah_lightning.plugins``.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path

from noah_lightning.errors import ConfigError, UserError, one_line

GROUP = "noah_lightning.plugins"


def load_plugins(modules: Sequence[str]) -> None:
    """Import the modules that a configuration names; raises ConfigError if one cannot be imported."""
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        for name in modules:
            with _one_line(f"plugins=[{name}]"):
                import_module(name)
    finally:
        sys.path.remove(folder)


@cache
def load_installed_plugins() -> None:
    """Import the modules of installed plug-ins, once; raises ConfigError if one cannot be imported."""
    for entry in entry_points(group=GROUP):
        with _one_line(f"the plug-in {entry.name} ({entry.value})"):
            entry.load()


@contextmanager
def _one_line(what: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # any code may run at import
        raise ConfigError(f"{what} cannot be imported: {type(error).__name__}: {one_line(error)}") from error
