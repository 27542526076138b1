"""One file: whether training can read it, and what is odd about it."""

import os
import stat
import warnings
from dataclasses import dataclass, field
from hashlib import blake2b
from io import BytesIO
from pathlib import Path

import simplejpeg
from PIL import Image, UnidentifiedImageError

from noah_lightning.data.image import decode_rgb, usual_jpeg
from noah_lightning.errors import one_line
from noah_lightning.tools.check_data.report import SMALLEST

FORMATS = Image.registered_extensions()  # ".jpg" → "JPEG"


@dataclass(frozen=True)
class Look:
    """What a file is.

    Attributes:
        digest: 64 bits of a hash of the file's bytes; 0 where there is no image to compare.
        remarks: kinds of :data:`~noah_lightning.tools.check_data.report.KINDS`, each with a detail or "".
    """

    digest: int = 0
    remarks: list[tuple[str, str]] = field(default_factory=list)


def look_at(path: str) -> Look:
    """Read and decode a file as training does."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for ever
            return Look(remarks=[("unreadable", "not a regular file")])
        data = Path(path).read_bytes()
    except OSError as error:
        kind = "broken-link" if os.path.islink(path) and not os.path.exists(path) else "unreadable"
        return Look(remarks=[(kind, error.strerror or one_line(error))])
    if not data:
        return Look(remarks=[("empty-file", "")])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return _look_into(data, os.path.splitext(path)[1].lower())


def _look_into(data: bytes, suffix: str) -> Look:
    try:
        with Image.open(BytesIO(data)) as image:  # the header alone
            form, mode = image.format, image.mode
        usual = usual_jpeg(data)
        pixels = decode_rgb(data) if usual is None else usual
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        return Look(remarks=[("huge", one_line(error).partition(",")[0])])
    except UnidentifiedImageError:
        return Look(remarks=[("undecodable", "no image")])
    except Exception as error:  # PIL's decoders raise a dozen unrelated types on broken files
        return Look(remarks=[("undecodable", one_line(error, 100))])
    remarks = []
    height, width = pixels.shape[:2]
    if min(height, width) < SMALLEST:
        remarks.append(("tiny", f"{width} × {height}"))
    if mode.startswith(("I", "F")):
        remarks.append(("clipped", mode))
    elif mode not in ("RGB", "L"):
        remarks.append(("converted", mode))
    if form != FORMATS.get(suffix) and (form, suffix) != ("MPO", ".jpg"):
        remarks.append(("other-format", str(form)))
    if usual is None and form == "JPEG" and mode in ("RGB", "L") and _damaged(data):
        remarks.append(("damaged", ""))
    return Look(int.from_bytes(blake2b(data, digest_size=8).digest()), remarks)


def _damaged(jpeg: bytes) -> bool:
    """Whether libjpeg warns about it; PIL keeps that to itself."""
    try:
        simplejpeg.decode_jpeg(jpeg)
    except ValueError:
        return True
    return False
