"""Checkpoint files that are whole: put in their place when they are written, and checked before they are read."""

import logging
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO

from noah_lightning.errors import WeightsError, one_line
from noah_lightning.whole_file import write_whole

log = logging.getLogger("noah_lightning")


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
