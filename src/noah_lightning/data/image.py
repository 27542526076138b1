"""Image decoding to RGB bytes; of a JPEG only as many rows as are needed."""

import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import simplejpeg
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from noah_lightning.errors import ConfigError, DataError, one_line

LIMIT = "NOAH_MAX_IMAGE_PIXELS"
if LIMIT in os.environ:
    if not (os.environ[LIMIT].isdecimal() and int(os.environ[LIMIT])):
        raise ConfigError(f"{LIMIT}={os.environ[LIMIT]!r} must be an integer of at least 1")
    Image.MAX_IMAGE_PIXELS = int(os.environ[LIMIT])


@contextmanager
def naming(source: str | Path) -> Iterator[None]:
    """Turn any error into a DataError that names the image file ``source``."""
    try:
        yield
    except Exception as error:  # PIL's decoders raise a dozen unrelated types on broken files
        raise DataError(f"{source} cannot be read as an image, replace or remove it ({reason(error)})") from error


def reason(error: Exception, limit: int = 300) -> str:
    """Why an image cannot be decoded, in one line of at most ``limit`` characters."""
    # Pillow's text names the buffer that holds the bytes of the file.
    return "not an image" if isinstance(error, UnidentifiedImageError) else one_line(error, limit)


def read_file(path: Path) -> bytes:
    """The content of a regular file; OSError for others, because opening a pipe would wait forever."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError("not a regular file")
    return path.read_bytes()


def decode_rgb(data: bytes, upright: bool = False) -> np.ndarray:
    """Decode a file of any format and color model to uint8 (H, W, 3). Raises errors of any type.

    With ``upright`` the pixels are turned as the EXIF orientation says.
    """
    pixels = usual_jpeg(data)
    if pixels is not None:
        orientation = jpeg_orientation(data) if upright else 1
    else:
        with Image.open(BytesIO(data)) as image:
            require_size(*image.size)
            pixels = np.array(image.convert("RGB"))  # of a TIFF, PIL has turned them, and removed the tag
            orientation = exif_orientation(image) if upright else 1
    if orientation == 1:
        return pixels
    rows, columns = _STEPS[orientation]
    whole = pixels.view("V3")[:, :, 0]  # an element per pixel, which is copied twice as fast
    turned = np.ascontiguousarray((whole.T if orientation >= 5 else whole)[::rows, ::columns])
    return turned.view(np.uint8).reshape(*turned.shape, 3)


# By EXIF orientation: steps along rows and columns, from 5 on after rows and columns are exchanged.
_STEPS = {2: (1, -1), 3: (-1, -1), 4: (-1, 1), 5: (1, 1), 6: (1, -1), 7: (-1, -1), 8: (-1, 1)}


def exif_orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 if there is none, or none that can be read."""
    with _tolerating_damage():
        if (found := image.getexif().get(ExifTags.Base.Orientation)) in _STEPS:
            return int(found)
    return 1


def jpeg_orientation(data: bytes) -> int:
    """As :func:`exif_orientation`, of the bytes of a JPEG; almost free if it has no EXIF data."""
    segments = _segments(data)
    if _SCAN in segments and _APP1 not in segments:
        return 1
    with _tolerating_damage(), Image.open(BytesIO(data)) as image:  # reads only the header
        return exif_orientation(image)
    return 1


@contextmanager
def _tolerating_damage() -> Iterator[None]:
    """For damaged EXIF data PIL warns, or raises several unrelated types; every viewer ignores it."""
    with suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def usual_jpeg(data: bytes) -> np.ndarray | None:
    """Decode an intact YCbCr JPEG directly with libjpeg-turbo, which gives the same bytes as PIL with fewer copies.

    Other formats, other color models and damaged JPEGs, for which it returns None, are left to PIL.
    """
    with suppress(ValueError):  # PIL decides whether it can still be read, and gives the reason if not
        height, width, model, _ = simplejpeg.decode_jpeg_header(data)
        if model == "YCbCr":
            require_size(width, height)
            return simplejpeg.decode_jpeg(data)
    return None


def require_size(width: int, height: int) -> None:
    """Raise Image.DecompressionBombError for an image with more pixels than the limit."""
    limit = Image.MAX_IMAGE_PIXELS  # None: no limit
    if limit is not None and width * height > limit:
        raise Image.DecompressionBombError(f"{width} × {height} pixels are more than {LIMIT}={limit}")


_BEGIN, _END = b"\xff\xd8", b"\xff\xd9"
_SCAN, _APP1 = 0xDA, 0xE1  # the latter holds EXIF data
_SEQUENTIAL = (
    0xC0,
    0xC1,
)  # frames that are Huffman-coded from top to bottom
_OTHER_FRAMES = {*range(0xC2, 0xD0)} - {0xC4, 0xC8, 0xCC}  # progressive, lossless, arithmetic-coded


class SequentialJpeg(NamedTuple):
    """Header of a JPEG that is encoded from top to bottom in one scan."""

    height: int  # in pixels
    width: int
    height_at: int  # offset of the two bytes that hold the height
    block: int  # rows of pixels per row of the coarsest color component


def sequential_jpeg(data: bytes) -> SequentialJpeg | None:
    """Parse the header of a file; None unless it is a complete sequential JPEG in YCbCr."""
    if not (data.startswith(_BEGIN) and data.endswith(_END)):
        return None
    segments = _segments(data)
    # of the frame: bits, height (2), width (2), number of components, 3 bytes for each component
    frame = max(segments.get(kind, 0) for kind in _SEQUENTIAL)
    if not frame or _SCAN not in segments or not _OTHER_FRAMES.isdisjoint(segments):
        return None
    one_scan = data[segments[_SCAN]] == data[frame + 5]  # of all components
    return _parse_frame(data, frame) if one_scan else None


def _segments(data: bytes) -> dict[int, int]:
    """Offset of the content of each kind of segment in the header of a JPEG, the last of which is ``_SCAN``."""
    found: dict[int, int] = {}
    marker = len(_BEGIN)
    while _SCAN not in found and marker + 4 < len(data) and data[marker] == 0xFF != data[marker + 1]:
        content = marker + 4
        found[data[marker + 1]] = content
        marker += 2 + int.from_bytes(data[marker + 2 : content])
    return found


def _parse_frame(data: bytes, frame: int) -> SequentialJpeg | None:
    with suppress(ValueError):
        height, width, model, _ = simplejpeg.decode_jpeg_header(data)
        if model == "YCbCr":
            block = max(vertical & 15 for vertical in data[frame + 7 : frame + 16 : 3])
            return SequentialJpeg(height, width, frame + 1, block)
    return None


class Picture:
    """An image whose height and width are known at once and whose pixels are decoded when they are needed.

    Huffman decoding, from top to bottom, takes most of the loading time, and a random crop rarely reaches the lower
    edge. So only the rows needed of a JPEG are decoded; other formats are decoded at once.

    Args:
        data: content of the file.
        source: name of the file in error messages.
        upright: turn it as its EXIF orientation says.

    Raises DataError for a file that is not an image, a truncated image, or one with too many pixels.
    """

    def __init__(self, data: bytes, source: str | Path, upright: bool = False) -> None:
        self._data, self._source, self._upright = data, source, upright
        with naming(source):
            self._jpeg = sequential_jpeg(data)
            if self._jpeg and upright:
                self._upright = jpeg_orientation(data) != 1
                self._jpeg = None if self._upright else self._jpeg
            if self._jpeg is None:
                self.height, self.width = self._decoded.shape[:2]
            else:
                self.height, self.width, *_ = self._jpeg
                require_size(self.width, self.height)

    @classmethod
    def read(cls, file: Path, upright: bool = False) -> "Picture":
        """Read an image file; raises DataError if it cannot be read."""
        with naming(file):
            data = read_file(file)
        return cls(data, file, upright)

    @cached_property
    def _decoded(self) -> np.ndarray:
        return decode_rgb(self._data, self._upright)

    def pixels(self, rows: int | None = None) -> Tensor:
        """All pixels, or those of the upper ``rows``; raises DataError if the image cannot be decoded.

        Returns:
            uint8 (3, rows, W), a view of (rows, W, 3), the layout that torch resizes fastest.
        """
        with naming(self._source):
            pixels = self._upper(self.height if rows is None else rows)
        return torch.from_numpy(pixels).permute(2, 0, 1)

    def _upper(self, rows: int) -> np.ndarray:
        """The upper rows, the same bytes as decoding the whole image gives.

        To decode only these rows of a JPEG, the height in its header is reduced. libjpeg then warns about the data
        that follows, so warnings are ignored; PIL also ignores those about damaged data.
        """
        if self._jpeg is not None and rows < self.height:
            at = self._jpeg.height_at
            height = min(rows + 2 * self._jpeg.block, self.height)  # chroma is interpolated with the following rows
            shorter = b"".join((self._data[:at], height.to_bytes(2), self._data[at + 2 :]))
            with suppress(ValueError):  # decode_rgb decides what can be read
                return simplejpeg.decode_jpeg(shorter, strict=False)[:rows]
        return self._decoded[:rows]
