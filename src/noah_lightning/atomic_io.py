"""Atomic writing of files: a reader finds the old or the new one, never a part."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

PART = ".part"  # end of a name: not yet whole


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let ``write`` fill a new file and put it in the place of ``path``; if anything fails, the old one stays.

    Raises:
        OSError: it cannot be written.
    """
    part = path.with_name(path.name + PART)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """So that the new name, too, survives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
