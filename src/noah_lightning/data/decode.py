"""A file → the picture in it, as bytes.

A few kilobytes can stand for gigabytes of pixels, so a picture of more than PIL's limit, some 89 million pixels, is
refused by what its header says. ``NOAH_MAX_IMAGE_PIXELS`` in the environment sets another limit.
"""

import os
from io import BytesIO
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch import Tensor

from noah_lightning.checks import whole_number
from noah_lightning.errors import DataError, one_line

LIMIT = "NOAH_MAX_IMAGE_PIXELS"
if LIMIT in os.environ:
    _given = os.environ[LIMIT]
    Image.MAX_IMAGE_PIXELS = whole_number(LIMIT, int(_given) if _given.isdecimal() else _given, low=1)


def read_rgb(path: str | Path) -> Tensor:
    """The picture in a file, whatever its format and colour model.

    The usual JPEG goes straight to libjpeg-turbo, which gives the bytes that PIL gives, without PIL's copies.

    Returns:
        uint8 (3, H, W), a view of rows of pixels (H, W, 3): the layout that torch scales fastest.

    Raises:
        DataError: the file is missing, no image, or cut short.
    """
    try:
        pixels = decode_rgb(Path(path).read_bytes())
    except Exception as error:  # PIL's decoders raise a dozen unrelated types on broken files
        raise DataError(f"{path} cannot be read as an image, replace or remove it ({one_line(error)})") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


def decode_rgb(data: bytes) -> np.ndarray:
    """The same from the bytes of a file: uint8 (H, W, 3). Its errors are of any type."""
    pixels = usual_jpeg(data)
    if pixels is None:
        with Image.open(BytesIO(data)) as image:
            _require_size(*image.size)
            pixels = np.array(image.convert("RGB"))
    return pixels


def usual_jpeg(data: bytes) -> np.ndarray | None:
    """uint8 (H, W, 3), or None where PIL has to see to it: no JPEG, another colour model, or not quite in order."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours == "YCbCr":
            _require_size(width, height)
            return simplejpeg.decode_jpeg(data)
    except ValueError:  # PIL knows whether it can be read all the same, and says why not
        pass
    return None


def _require_size(width: int, height: int) -> None:
    limit = Image.MAX_IMAGE_PIXELS  # None: none
    if limit is not None and width * height > limit:
        raise Image.DecompressionBombError(f"{width} × {height} pixels are more than {LIMIT}={limit}")
