"""Packing of a folder tree of images into the shards that ``data=packed`` reads."""

import json
import os
import shutil
import tarfile
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from noah_lightning.atomic_io import write_whole
from noah_lightning.data.image import Picture, decode_rgb, naming
from noah_lightning.data.imagefolder import FolderImages
from noah_lightning.data.pack_format import FACTS, FORMAT, SPLITS, VERSION, Index, shard_name, unfinished
from noah_lightning.data.tree import given_root, require_same_classes
from noah_lightning.distributed.environment import cores
from noah_lightning.distributed.signals import Stopped, StopRequest
from noah_lightning.errors import DataError, one_line
from noah_lightning.loggers.console import log
from noah_lightning.loggers.progress import progress

SEED = 0  # of the order of the training images in the pack
AHEAD = 8  # images per thread that are read in advance
LOCK = "noah-pack.lock"

Advance = Callable[[], None]  # called after each image; raises Stopped


@dataclass(frozen=True)
class Packed:
    """A pack that was written."""

    out: Path
    classes: int
    indices: dict[str, Index]

    def __str__(self) -> str:
        parts = [f"{name} {len(one):,} images in {len(one.ends)} shards" for name, one in self.indices.items()]
        size = sum(int(one.shard_bytes.sum()) for one in self.indices.values())
        return f"{self.out}  {'  '.join(parts)}  {self.classes} classes  {size / 1e9:.3g} GB"


def pack(root: Path, out: Path, shard_bytes: int) -> Packed:
    """Write the images of root/train/<class>/ and root/val/<class>/ into shards in the new folder ``out``.

    The bytes of the images do not change; each is decoded once, as a check. Training images are shuffled, those of
    val/ keep the order of the tree. The result only depends on the tree and ``shard_bytes``.

    Args:
        root: as for ``data=imagefolder``.
        out: new folder; until all is written, its name ends in ``.unfinished``.
        shard_bytes: size of a shard.

    Raises:
        DataError: the tree is invalid, a file is not an image, or ``out`` exists or cannot be written.
        Stopped: stopped by a signal, after the written files were removed.
    """
    root = given_root(str(root))
    require_same_classes(root)
    images = {split: FolderImages(root, split, Picture.pixels) for split in SPLITS}
    classes = images["train"].classes
    # A flag checked after each image, as KeyboardInterrupt could be raised while a thread holds a lock.
    request = StopRequest()
    with (
        request.listening(),
        _new_folder(out) as folder,
        progress("packing", sum(map(len, images.values()))) as count,
    ):

        def advance() -> None:
            count()
            if request.signal:
                raise Stopped(request.signal)

        indices: dict[str, Index] = {}
        for split in SPLITS:
            indices[split] = _write_split(folder, split, images[split], shard_bytes, advance)
        _finish(folder, classes, indices)
    return Packed(out, len(classes), indices)


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder that is renamed to ``out`` at the end, or removed on an error, as are the files of a killed attempt.

    Raises:
        DataError: ``out`` exists, another process is packing into it, or it cannot be written.
    """
    part = unfinished(out)
    try:
        _require_new(out)
        left = os.listdir(part) if part.exists() else []
        if left and LOCK not in left:
            raise DataError(f"{part} was not written by noah pack: move it, or choose another folder")
        part.mkdir(parents=True, exist_ok=True)
        with FileLock(part / LOCK, blocking=False):
            try:
                _require_new(out)  # another process may just have finished
                if left:
                    log.info("%s: packing was interrupted; starting over", out)
                for name in left:
                    if name != LOCK:
                        (part / name).unlink()
                yield part
                part.rename(out)
            except BaseException:
                shutil.rmtree(part)
                raise
            (out / LOCK).unlink(missing_ok=True)
    except Timeout:
        raise DataError(f"another process is packing into {out}: wait for it, or choose another folder") from None
    except OSError as error:
        raise DataError(f"{out} cannot be written: {error.strerror or one_line(error)}") from error


def _require_new(out: Path) -> None:
    if out.exists() or out.is_symlink():
        raise DataError(f"{out} already exists and is not overwritten: choose a new folder")


def _write_split(folder: Path, split: str, images: FolderImages, shard_bytes: int, advance: Advance) -> Index:
    """Write the shards of one split."""
    count = len(images)
    order = np.random.default_rng(SEED).permutation(count) if split == "train" else np.arange(count)
    labels = images.index.labels[order]
    members: list[tuple[int, int, int]] = []  # offset, size and checksum of each image
    ends: list[int] = []
    lengths: list[int] = []
    with _reading(images.file(image) for image in order.tolist()) as files:
        while len(members) < count:
            path = folder / shard_name(split, len(ends))
            lengths.append(_write_shard(path, files, labels, members, shard_bytes, advance))
            ends.append(len(members))
    offsets, sizes, checksums = np.array(members).T
    return Index(np.array(ends), np.array(lengths), offsets, sizes, checksums.astype(np.uint32), labels)


def _write_shard(
    path: Path,
    files: Iterator[tuple[Path, bytes]],
    labels: NDArray[np.int32],
    members: list[tuple[int, int, int]],
    shard_bytes: int,
    advance: Advance,
) -> int:
    """Write a shard of the next images, and append them to ``members``; returns its size in bytes."""
    with open(path, "xb") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as shard:
            while len(members) < len(labels) and shard.offset < shard_bytes:
                source, data = next(files)
                number = len(members)
                members.append((shard.offset + tarfile.BLOCKSIZE, len(data), zlib.crc32(data)))  # after the header
                _add(shard, f"{number:09}{source.suffix.lower()}", data)
                _add(shard, f"{number:09}.cls", str(labels[number]).encode())
                advance()
        file.flush()
        os.fsync(file.fileno())
        return file.tell()


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # no owner and no time, so that the same images give the same shard
    member.size = len(data)
    archive.addfile(member, BytesIO(data))


@contextmanager
def _reading(sources: Iterable[Path]) -> Iterator[Iterator[tuple[Path, bytes]]]:
    """Paths and bytes of files, in order, read and decoded in advance by threads, which release the GIL."""
    pool = ThreadPoolExecutor(cores())

    def in_order() -> Iterator[tuple[Path, bytes]]:
        ahead: deque[tuple[Path, Future[bytes]]] = deque()
        for source in sources:
            ahead.append((source, pool.submit(_read, source)))
            if len(ahead) > AHEAD * cores():
                first, data = ahead.popleft()
                yield first, data.result()
        for first, data in ahead:
            yield first, data.result()

    try:
        yield in_order()
    finally:
        pool.shutdown(cancel_futures=True)


def _read(source: Path) -> bytes:
    with naming(source):
        data = source.read_bytes()
        decode_rgb(data)
    return data


def _finish(folder: Path, classes: list[str], indices: dict[str, Index]) -> None:
    """Write the index and pack.json."""
    splits = {}
    for split, index in indices.items():
        write_whole(folder / f"{split}.npz", index.write)
        splits[split] = {"images": len(index), "shards": len(index.ends), "bytes": int(index.shard_bytes.sum())}
    facts = {"format": FORMAT, "version": VERSION, "splits": splits, "classes": classes}
    write_whole(folder / FACTS, lambda file: file.write(json.dumps(facts, indent=1).encode()))
