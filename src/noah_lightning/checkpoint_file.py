"""Checkpoint files that are whole: put in their place when they are written, and checked before they are read."""

import logging
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO

from noah_lightning.errors import WeightsError, one_line

log = logging.getLogger("noah_lightning")
PART = ".part"  # of a name: not yet whole


class WholeFiles(TorchCheckpointIO):
    """How Lightning writes checkpoints here: a crash, a power cut or a full disk leaves the previous file as it is.

    A file that cannot be written ends no run: it is told, and the run goes on.

    Attributes:
        failed: whether the latest one could not be written.
    """

    failed = False

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write ``path`` in one piece."""
        try:
            write_whole(Path(path), lambda file: torch.save(checkpoint, file))
            self.failed = False
        except (OSError, RuntimeError) as error:  # torch's writer turns the system's errors into its own
            self.failed = True
            log.warning("%s cannot be written (%s); what was saved before is kept", path, one_line(error))


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let ``write`` fill a new file and put it in the place of ``path``; whatever goes wrong, the old one stays."""
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


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU; nothing in it is executed.

    Raises:
        WeightsError: no checkpoint, or a damaged one: each part of the file has a checksum.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise WeightsError(f"{path} is damaged: the checksum of {damaged} is wrong")
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return content
    except WeightsError:
        raise
    except Exception as error:  # torch, pickle and zipfile each raise their own
        raise WeightsError(f"{path} cannot be read as a checkpoint: {one_line(error)}") from error


def _sync_folder(folder: Path) -> None:
    """So that the new name, too, survives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
