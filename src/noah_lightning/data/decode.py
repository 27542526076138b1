"""The bytes of a file → the picture in it, as bytes of red, green and blue.

A few kilobytes can stand for gigabytes of pixels, so a picture of more than PIL's limit, some 89 million pixels, is
refused by what its header says. ``NOAH_MAX_IMAGE_PIXELS`` in the environment sets another limit.
"""

import os
from io import BytesIO

import numpy as np
import simplejpeg
from PIL import Image

from noah_lightning.checks import whole_number

LIMIT = "NOAH_MAX_IMAGE_PIXELS"
if LIMIT in os.environ:
    _given = os.environ[LIMIT]
    Image.MAX_IMAGE_PIXELS = whole_number(LIMIT, int(_given) if _given.isdecimal() else _given, low=1)


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
