"""A picture in its file, decoded no further down than somebody needs it."""

from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from noah_lightning.data.decode import decode_rgb, require_size
from noah_lightning.data.jpeg import sequential_jpeg
from noah_lightning.errors import DataError, one_line


class Picture:
    """How large a picture is, and its pixels once they are asked for.

    Most of the time that a photograph takes goes into undoing its Huffman code, from top to bottom, and a random crop
    seldom reaches down to its lower edge: of a JPEG no more is decoded than is asked for. Others are decoded at once.

    Args:
        data: the bytes of a file.
        source: what an error calls it.

    Attributes:
        height: in pixels.
        width: likewise.

    Raises:
        DataError: no image, one that is cut short, or one of too many pixels.
    """

    def __init__(self, data: bytes, source: str | Path) -> None:
        self._data, self._source = data, source
        self._decoded: np.ndarray | None = None
        try:
            self._jpeg = sequential_jpeg(data)
            if self._jpeg is None:
                self._decoded = decode_rgb(data)
                self.height, self.width = self._decoded.shape[:2]
            else:
                self.height, self.width = self._jpeg.height, self._jpeg.width
                require_size(self.width, self.height)
        except Exception as error:  # PIL's decoders raise a dozen unrelated types on broken files
            raise unreadable(source, error) from error

    @classmethod
    def read(cls, file: Path) -> "Picture":
        """The picture in a file; DataError also where the file cannot be read."""
        try:
            data = file.read_bytes()
        except OSError as error:
            raise unreadable(file, error) from error
        return cls(data, file)

    def pixels(self, rows: int | None = None) -> Tensor:
        """The picture, or its upper ``rows``.

        Returns:
            uint8 (3, rows, W), a view of rows of pixels (rows, W, 3): the layout that torch scales fastest.

        Raises:
            DataError: it cannot be decoded.
        """
        try:
            pixels = self._upper(self.height if rows is None else rows)
        except Exception as error:
            raise unreadable(self._source, error) from error
        return torch.from_numpy(pixels).permute(2, 0, 1)

    def _upper(self, rows: int) -> np.ndarray:
        if self._jpeg is not None and rows < self.height:
            with suppress(ValueError):  # decode_rgb has the last word on what can be read
                return self._jpeg.upper(rows)
        if self._decoded is None:
            self._decoded = decode_rgb(self._data)
        return self._decoded[:rows]


def unreadable(source: str | Path, error: Exception) -> DataError:
    """How all of the project says it."""
    return DataError(f"{source} cannot be read as an image, replace or remove it ({one_line(error)})")
