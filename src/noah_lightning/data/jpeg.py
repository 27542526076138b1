"""The upper part of a JPEG, without decoding what lies below it."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import simplejpeg

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
