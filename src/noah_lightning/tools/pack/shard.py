"""One shard: a tar archive of image files and their labels, as WebDataset has it."""

import os
import tarfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from noah_lightning.data.image import decode_rgb, unreadable
from noah_lightning.tools.pack.progress import Advance


@dataclass(frozen=True)
class Shard:
    """What was written: bytes in all; begin, size and CRC-32 of each image, as in :class:`Index`."""

    bytes: int
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    checksums: NDArray[np.uint32]


def tar_size(size: NDArray[np.int64]) -> NDArray[np.int64]:
    """Bytes that images of ``size`` bytes take in a shard: two headers, the label's block, and whole blocks."""
    blocks: NDArray[np.int64] = 3 + -(-size // tarfile.BLOCKSIZE)
    return blocks * tarfile.BLOCKSIZE


def write_shard(
    path: Path, images: Iterable[tuple[Path, int]], first: int, advance: Advance, go_on: Callable[[], None]
) -> Shard:
    """Writes a new shard to the disk.

    Args:
        path: of the shard.
        images: file and label of each.
        first: number of the first one in its split.
        advance: is told of each image.
        go_on: is asked before each image; what it raises ends the work early.

    Raises:
        DataError: a file that is no image.
        OSError: the shard cannot be written.
    """
    offsets, sizes, checksums = [], [], []
    with open(path, "xb") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            for number, (source, label) in enumerate(images, first):
                go_on()
                data = _read(source)
                offsets.append(archive.offset + tarfile.BLOCKSIZE)  # behind the header
                sizes.append(len(data))
                checksums.append(zlib.crc32(data))
                _add(archive, f"{number:09}{source.suffix.lower()}", data)
                _add(archive, f"{number:09}.cls", str(label).encode())
                advance()
        file.flush()
        os.fsync(file.fileno())  # before pack.json says that all is there
        length = file.tell()
    return Shard(length, np.array(offsets), np.array(sizes), np.array(checksums, np.uint32))


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # no owner, no time: the same images make the same shard
    member.size = len(data)
    archive.addfile(member, BytesIO(data))


def _read(source: Path) -> bytes:
    try:
        data = source.read_bytes()
        decode_rgb(data)
    except Exception as error:  # PIL's decoders raise a dozen unrelated types on broken files
        raise unreadable(source, error) from error
    return data


def read_size(source: Path) -> int:
    """Bytes of a file; DataError where it cannot be asked for."""
    try:
        return os.stat(source).st_size
    except OSError as error:
        raise unreadable(source, error) from error
