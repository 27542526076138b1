"""An image file decoded to RGB bytes, no further down than it is needed."""

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
    _given = os.environ[LIMIT]
    if not _given.isdecimal() or int(_given) < 1:
        raise ConfigError(f"{LIMIT}={_given!r} must be an integer of at least 1")
    Image.MAX_IMAGE_PIXELS = int(_given)


def decode_rgb(data: bytes) -> np.ndarray:
    """The picture, whatever its format and colour model: uint8 (H, W, 3). Its errors are of any type."""
    pixels = usual_jpeg(data)
    if pixels is None:
        with Image.open(BytesIO(data)) as image:
            require_size(*image.size)
            pixels = np.array(image.convert("RGB"))
    return pixels


def usual_jpeg(data: bytes) -> np.ndarray | None:
    """The picture in a JPEG of the usual kind, straight from libjpeg-turbo: PIL's bytes without PIL's copies.

    Returns:
        uint8 (H, W, 3), or None where PIL has to see to it: no JPEG, another colour model, or not quite in order.
    """
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours == "YCbCr":
            require_size(width, height)
            return simplejpeg.decode_jpeg(data)
    except ValueError:  # PIL knows whether it can be read all the same, and says why not
        pass
    return None


def require_size(width: int, height: int) -> None:
    """Refuse a picture of more pixels than the limit.

    Raises:
        Image.DecompressionBombError: it has more.
    """
    limit = Image.MAX_IMAGE_PIXELS  # None: none
    if limit is not None and width * height > limit:
        raise Image.DecompressionBombError(f"{width} × {height} pixels are more than {LIMIT}={limit}")


_BEGIN, _END = b"\xff\xd8", b"\xff\xd9"
_SCAN = 0xDA
_SEQUENTIAL = (0xC0, 0xC1)  # frames that are Huffman-coded from top to bottom
_OTHER_FRAMES = {*range(0xC2, 0xD0)} - {0xC4, 0xC8, 0xCC}  # progressive, lossless, arithmetic-coded


@dataclass(frozen=True)
class SequentialJpeg:
    """A JPEG that is coded from top to bottom in one go.

    Attributes:
        data: the file.
        height: in pixels.
        width: likewise.
        height_at: where the file says how high it is, in two bytes.
        block: rows of pixels that one row of the coarsest colours stands for.
    """

    data: bytes
    height: int
    width: int
    height_at: int
    block: int

    def upper(self, rows: int) -> np.ndarray:
        """uint8 (rows, W, 3), the same bytes as decoding all of it gives.

        libjpeg is told that the picture ends there. It then warns of the code it has no use for, so its warnings are
        passed over: about others, which say that the code is damaged, PIL does not care either.

        Raises:
            ValueError: it cannot be decoded.
        """
        told = min(rows + 2 * self.block, self.height)  # colours are smoothed with those of the rows around
        shorter = b"".join((self.data[: self.height_at], told.to_bytes(2), self.data[self.height_at + 2 :]))
        return simplejpeg.decode_jpeg(shorter, strict=False)[:rows]


def sequential_jpeg(data: bytes) -> SequentialJpeg | None:
    """What the headers of a file say; None: no such JPEG, not in YCbCr, or its end is missing."""
    if not data.endswith(_END):
        return None
    frame = 0
    for kind, at in _segments(data):
        if kind in _OTHER_FRAMES:
            break
        if kind in _SEQUENTIAL:
            frame = at  # its content: bits, height (2), width (2), colours, then 3 bytes for each of these
        elif kind == _SCAN and frame and data[at] == data[frame + 5]:  # all colours in one scan
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
    """The kinds of a JPEG's segments and where their contents begin, up to the first scan."""
    at = len(_BEGIN) if data.startswith(_BEGIN) else len(data)
    while at + 4 < len(data) and data[at] == 0xFF:
        kind = data[at + 1]
        yield kind, at + 4
        if kind == _SCAN:
            return
        at += 2 + int.from_bytes(data[at + 2 : at + 4])


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
