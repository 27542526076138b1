"""Packing of a folder tree of images into the shards that ``data=packed`` reads."""

import json
import os
import shutil
import tarfile
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from rich.filesize import decimal

from noah_lightning.atomic_io import write_whole
from noah_lightning.data.image import Picture, decode_rgb, naming, read_file
from noah_lightning.data.imagefolder import FolderImages
from noah_lightning.data.pack_format import FACTS, FORMAT, SPLITS, VERSION, Index, shard_name, unfinished
from noah_lightning.data.tree import given_root, require_same_classes
from noah_lightning.distributed.environment import cores
from noah_lightning.distributed.signals import Stopped, StopRequest
from noah_lightning.errors import DataError, count, one_line
from noah_lightning.loggers.console import log
from noah_lightning.loggers.progress import progress

SEED = 0  # of the order of the training images in the pack
AHEAD = 8  # images per thread that are read in advance
LOCK = "noah-pack.lock"


def pack(root: Path, out: Path, shard_bytes: int) -> str:
    """Write the images of root/train/<class>/ and root/val/<class>/ into shards in the new folder ``out``.

    The bytes of the images do not change; each is decoded once, as a check. Training images are shuffled, those of
    val/ keep the order of the tree. The result only depends on the tree and ``shard_bytes``.

    Until all is written, the name of the folder ends in ``.unfinished``.

    Returns:
        A line with the folder and the numbers of images, shards, classes and bytes.

    Raises:
        DataError: the tree is invalid, a file is not an image, or ``out`` exists or cannot be written.
        Stopped: stopped by a signal, after the written files were removed.
    """
    root = given_root(str(root))
    require_same_classes(root)
    images = {split: FolderImages(root, split, Picture.pixels) for split in SPLITS}
    classes = images["train"].classes
    total = sum(map(len, images.values()))
    # A flag checked after each image, as KeyboardInterrupt could be raised while a thread holds a lock.
    request = StopRequest()
    with request.listening(), _new_folder(out) as folder, progress("packing", total) as done:

        def advance() -> None:
            done()
            if request.signal:
                raise Stopped(request.signal)

        splits = {}
        for split in SPLITS:
            index = _write_shards(folder, split, images[split], shard_bytes, advance)
            write_whole(folder / f"{split}.npz", index.write)
            splits[split] = {"images": len(index), "shards": len(index.ends), "bytes": int(index.shard_bytes.sum())}
        facts = {"format": FORMAT, "version": VERSION, "splits": splits, "classes": classes}
        write_whole(folder / FACTS, lambda file: file.write(json.dumps(facts, indent=1).encode()))
    parts = [
        f"{split} {count(fact['images'], 'image')} in {count(fact['shards'], 'shard')}"
        for split, fact in splits.items()
    ]
    size = decimal(sum(fact["bytes"] for fact in splits.values()))
    return f"{out}  {'  '.join(parts)}  {count(len(classes), 'class')}  {size}"


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


def _write_shards(
    folder: Path, split: str, images: FolderImages, shard_bytes: int, advance: Callable[[], None]
) -> Index:
    """Write the shards of one split; ``advance`` is called after each image."""
    count = len(images)
    order = np.random.default_rng(SEED).permutation(count) if split == "train" else np.arange(count)
    labels = images.index.labels[order]
    members: list[tuple[int, int, int]] = []  # offset, size and checksum of each image
    ends: list[int] = []
    lengths: list[int] = []
    with closing(_read_ahead(images.file(image) for image in order.tolist())) as files:
        while len(members) < count:
            with open(folder / shard_name(split, len(ends)), "xb") as file:
                with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as shard:
                    while len(members) < count and shard.offset < shard_bytes:
                        source, data = next(files)
                        number = len(members)
                        offset = shard.offset + tarfile.BLOCKSIZE  # after the header
                        members.append((offset, len(data), zlib.crc32(data)))
                        _add(shard, f"{number:09}{source.suffix.lower()}", data)
                        _add(shard, f"{number:09}.cls", str(labels[number]).encode())
                        advance()
                file.flush()
                os.fsync(file.fileno())
                lengths.append(file.tell())
            ends.append(len(members))
    offsets, sizes, checksums = np.array(members).T
    return Index(np.array(ends), np.array(lengths), offsets, sizes, checksums.astype(np.uint32), labels)


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # no owner and no time, so that the same images give the same shard
    member.size = len(data)
    archive.addfile(member, BytesIO(data))


def _read_ahead(sources: Iterable[Path]) -> Generator[tuple[Path, bytes], None, None]:
    """Paths and bytes of files, in order, read and decoded in advance by threads, which release the GIL."""
    pool = ThreadPoolExecutor(cores())
    ahead: deque[tuple[Path, Future[bytes]]] = deque()
    try:
        for source in sources:
            ahead.append((source, pool.submit(_read, source)))
            if len(ahead) > AHEAD * cores():
                first, data = ahead.popleft()
                yield first, data.result()
        for first, data in ahead:
            yield first, data.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _read(source: Path) -> bytes:
    with naming(source):
        data = read_file(source)
        decode_rgb(data)
    return data
