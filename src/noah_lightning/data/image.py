"""Image files decoded to RGB bytes, of a JPEG no more rows than are needed."""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch import Tensor

from noah_lightning.errors import ConfigError, DataError, one_line

LIMIT = "NOAH_MAX_IMAGE_PIXELS"
if LIMIT in os.environ:
    if not (os.environ[LIMIT].isdecimal() and int(os.environ[LIMIT])):
        raise ConfigError(f"{LIMIT}={os.environ[LIMIT]!r} must be an integer of at least 1")
    Image.MAX_IMAGE_PIXELS = int(os.environ[LIMIT])


def decode_rgb(data: bytes) -> np.ndarray:
    """The picture in a file of any format and color model: uint8 (H, W, 3). Raises errors of any type."""
    pixels = usual_jpeg(data)
    if pixels is None:
        with Image.open(BytesIO(data)) as image:
            require_size(*image.size)
            pixels = np.array(image.convert("RGB"))
    return pixels


def usual_jpeg(data: bytes) -> np.ndarray | None:
    """The picture in a JPEG of the usual kind, directly from libjpeg-turbo: PIL's bytes without PIL's copies.

    Returns:
        uint8 (H, W, 3), or None for PIL's share: other formats, other color models, and slightly damaged JPEGs.
    """
    with suppress(ValueError):  # PIL decides whether it can still be read, and why not
        height, width, model, _ = simplejpeg.decode_jpeg_header(data)
        if model == "YCbCr":
            require_size(width, height)
            return simplejpeg.decode_jpeg(data)
    return None


def require_size(width: int, height: int) -> None:
    """Raises Image.DecompressionBombError for a picture of more pixels than the limit."""
    limit = Image.MAX_IMAGE_PIXELS  # None: no limit
    if limit is not None and width * height > limit:
        raise Image.DecompressionBombError(f"{width} × {height} pixels are more than {LIMIT}={limit}")


_BEGIN, _END = b"\xff\xd8", b"\xff\xd9"
_SCAN = 0xDA
_SEQUENTIAL = (0xC0, 0xC1)  # frames that are Huffman-coded from top to bottom
_OTHER_FRAMES = {*range(0xC2, 0xD0)} - {0xC4, 0xC8, 0xCC}  # progressive, lossless, arithmetic-coded


@dataclass(frozen=True)
class SequentialJpeg:
    """A JPEG that is coded from top to bottom in one scan.

    Attributes:
        data: the file.
        height, width: in pixels.
        height_at: offset of the two bytes that hold the height.
        block: rows of pixels per row of the coarsest color component.
    """

    data: bytes
    height: int
    width: int
    height_at: int
    block: int

    def upper(self, rows: int) -> np.ndarray:
        """The upper rows, uint8 (rows, W, 3), the same bytes as decoding all of it gives.

        The header is changed so that the picture ends there. libjpeg then warns of superfluous data, so its warnings
        are ignored; PIL ignores the others, which say that the data is damaged, too.

        Raises:
            ValueError: it cannot be decoded.
        """
        height = min(rows + 2 * self.block, self.height)  # colors are interpolated with those of the next rows
        shorter = b"".join((self.data[: self.height_at], height.to_bytes(2), self.data[self.height_at + 2 :]))
        return simplejpeg.decode_jpeg(shorter, strict=False)[:rows]


def sequential_jpeg(data: bytes) -> SequentialJpeg | None:
    """The headers of a file; None for anything but such a JPEG, in YCbCr and with its end present."""
    if not data.endswith(_END):
        return None
    frame = 0
    for kind, at in _segments(data):
        if kind in _OTHER_FRAMES:
            break
        if kind in _SEQUENTIAL:
            frame = at  # its content: bits, height (2), width (2), components, then 3 bytes for each of these
        elif kind == _SCAN and frame and data[at] == data[frame + 5]:  # all components in one scan
            try:
                height, width, model, _ = simplejpeg.decode_jpeg_header(data)
            except ValueError:
                break
            if model != "YCbCr":
                break
            block = max(vertical & 15 for vertical in data[frame + 7 : frame + 16 : 3])
            return SequentialJpeg(data, height, width, frame + 1, block)
    return None


def _segments(data: bytes) -> Iterator[tuple[int, int]]:
    """The kinds of a JPEG's segments and the offsets of their contents, up to the first scan."""
    at = len(_BEGIN) if data.startswith(_BEGIN) else len(data)
    while at + 4 < len(data) and data[at] == 0xFF:
        kind = data[at + 1]
        yield kind, at + 4
        if kind == _SCAN:
            return
        at += 2 + int.from_bytes(data[at + 2 : at + 4])


class Picture:
    """The size of a picture, and its pixels when they are needed.

    Most of the time that a photograph takes goes into Huffman decoding, from top to bottom, and a random crop seldom
    reaches the lower edge: of a JPEG only the rows that are needed are decoded. Others are decoded at once.

    Args:
        data: the bytes of a file.
        source: its name in errors.

    Attributes:
        height, width: in pixels.

    Raises:
        DataError: not an image, a truncated one, or one of too many pixels.
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
        """The picture in a file; raises DataError also where the file cannot be read."""
        try:
            data = file.read_bytes()
        except OSError as error:
            raise unreadable(file, error) from error
        return cls(data, file)

    def pixels(self, rows: int | None = None) -> Tensor:
        """All pixels, or those of the upper ``rows``.

        Returns:
            uint8 (3, rows, W), a view of (rows, W, 3): the layout that torch scales fastest.

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
    """The error for a file that is not an image, from whichever part of the project reads it."""
    return DataError(f"{source} cannot be read as an image, replace or remove it ({one_line(error)})")
