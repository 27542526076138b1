"""``noah pack``: a folder tree into the shards that ``data=packed`` reads.

Threads share the work, as reading, decoding and checksums let the interpreter go; unlike processes they end with it,
however it ends, so nothing goes on writing beside a second attempt.
"""

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from noah_lightning.config.schema import ImageFolderSettings
from noah_lightning.data.imagefolder import FolderImages, ImageFolderDataModule
from noah_lightning.data.pack_format import SPLITS, Index, shard_name
from noah_lightning.data.tree import count_classes
from noah_lightning.distributed.signals import Stopped, StopRequest
from noah_lightning.errors import DataError
from noah_lightning.tools.pack.folder import claimed, finish
from noah_lightning.tools.pack.progress import Advance, progress
from noah_lightning.tools.pack.shard import Shard, read_size, tar_size, write_shard

SEED = 0  # of the order of the training images in the pack
STATS = 1000  # files whose size is asked for at a time


@dataclass(frozen=True)
class Packed:
    """What was written."""

    out: Path
    classes: int
    indices: dict[str, Index]

    def __str__(self) -> str:
        parts = [f"{name} {len(one):,} images in {len(one.ends)} shards" for name, one in self.indices.items()]
        size = sum(int(one.shard_bytes.sum()) for one in self.indices.values())
        return f"{self.out}  {'  '.join(parts)}  {self.classes} classes  {size / 1e9:.3g} GB"


def pack(root: Path, out: Path, shard_bytes: int) -> Packed:
    """Writes the images of root/train/<class>/ and root/val/<class>/ into shards in ``out``.

    The bytes of each image stay as they are; it is decoded once, to see that it can be. The training images are
    shuffled, those of val/ keep the order of the tree. The result is a pure function of the tree and ``shard_bytes``.

    Args:
        root: as for ``data=imagefolder``.
        out: a folder that does not exist or is empty, or an attempt that was broken off, which is begun anew.
        shard_bytes: size from which on a shard is full.

    Raises:
        DataError: a mistake in the tree, a file that is no image, or an ``out`` that cannot be used or written.
        Stopped: a signal asked for it; what was written is removed.
    """
    tree = _checked_tree(root)
    assert isinstance(tree.train_dataset, FolderImages)
    assert isinstance(tree.val_dataset, FolderImages)
    images = {"train": tree.train_dataset, "val": tree.val_dataset}
    # A flag, as KeyboardInterrupt in the midst of waiting for threads could leave their locks in disorder.
    request, failed = StopRequest(), threading.Event()
    with request.listening(), claimed(out), ThreadPoolExecutor() as pool:

        def go_on() -> None:
            if request.signal:
                raise Stopped(request.signal)
            if failed.is_set():
                raise CancelledError

        try:
            plan = {split: _plan(pool, images[split], split, shard_bytes, go_on) for split in SPLITS}
            with progress(sum(map(len, images.values()))) as advance:
                indices: dict[str, Index] = {
                    split: _write(pool, images[split], plan[split], out, split, advance, go_on) for split in SPLITS
                }
        except BaseException:
            failed.set()
            pool.shutdown(cancel_futures=True)
            raise
        finish(out, tree.class_names, indices)
    return Packed(out, len(tree.class_names), indices)


def _checked_tree(root: Path) -> ImageFolderDataModule:
    """``data=imagefolder`` lists the images and finds the mistakes; its transforms are not used."""
    settings = ImageFolderSettings(root=str(root), num_classes=count_classes(str(root)), num_workers=0, seed=SEED)
    tree = ImageFolderDataModule(settings)
    tree.setup("fit")
    return tree


def _plan(
    pool: ThreadPoolExecutor, images: FolderImages, split: str, shard_bytes: int, go_on: Callable[[], None]
) -> list[NDArray[np.int64]]:
    """Which images each shard gets, in order."""
    count = len(images)
    order = np.random.default_rng(SEED).permutation(count) if split == "train" else np.arange(count)

    def sizes_of(some: range) -> list[int]:
        go_on()
        return [read_size(images.file(image)) for image in some]

    some = [range(start, min(start + STATS, count)) for start in range(0, count, STATS)]
    sizes = tar_size(np.array([size for sizes in pool.map(sizes_of, some) for size in sizes]))[order]
    begins = np.cumsum(sizes) - sizes
    return np.split(order, np.flatnonzero(np.diff(begins // shard_bytes)) + 1)


def _write(
    pool: ThreadPoolExecutor,
    images: FolderImages,
    plan: Sequence[NDArray[np.int64]],
    out: Path,
    split: str,
    advance: Advance,
    go_on: Callable[[], None],
) -> Index:
    ends = np.cumsum([len(some) for some in plan])
    labels = images.index.labels

    def write(number: int) -> Shard:
        some = plan[number].tolist()
        sources = ((images.file(image), int(labels[image])) for image in some)
        first = int(ends[number]) - len(some)
        return write_shard(out / shard_name(split, number), sources, first, advance, go_on)

    shards = _all_done(pool, write, range(len(plan)), out)
    return Index(
        ends=ends,
        shard_bytes=np.array([shard.bytes for shard in shards]),
        offsets=np.concatenate([shard.offsets for shard in shards]),
        sizes=np.concatenate([shard.sizes for shard in shards]),
        checksums=np.concatenate([shard.checksums for shard in shards]),
        labels=labels[np.concatenate(plan)],
    )


def _all_done(
    pool: ThreadPoolExecutor, write: Callable[[int], Shard], numbers: Iterable[int], out: Path
) -> list[Shard]:
    """The results in order; the first failure at once."""
    futures = [pool.submit(write, number) for number in numbers]
    for future in as_completed(futures):
        try:
            future.result()
        except OSError as error:  # reading has errors of its own
            raise DataError(f"{out} cannot be written: {error.strerror or os.strerror(error.errno or 0)}") from error
    return [future.result() for future in futures]
