"""Atomic file writing: readers see the old or the new file, never an incomplete one."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

PART = ".part"  # suffix of incomplete files


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Replace ``path`` by a new file filled by ``write``; on an error, such as OSError, the old file is kept."""
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
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # so that the new name survives a power cut, too
    finally:
        os.close(folder)
