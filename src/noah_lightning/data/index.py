"""Index of the images of a split: paths and labels, cached on disk until a folder changes.

Paths are in an array, because a million Python strings take a hundred megabytes, and reading one changes its
reference count, so that every DataLoader worker would get its own copy of the memory.
"""

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torchvision.datasets.folder import IMG_EXTENSIONS, has_file_allowed_extension

from noah_lightning.errors import DataError, name_first

VERSION = 3  # of the cache file
# Two changes within one tick of the file system's clock look like one, so the index of a tree that has just
# been changed is not cached. The coarsest clock, that of FAT, ticks every 2 s.
TICK = 2 * 10**9  # ns


@dataclass(frozen=True)
class TreeIndex:
    """N images in the D folders of one split, in torchvision's order.

    Paths are relative to the split folder and encoded as in the file system.
    """

    classes: list[str]  # in label order
    folders: NDArray[np.bytes_]  # (D,) paths; the split folder comes first as ""
    stamps: NDArray[np.int64]  # (D, 2) stamp of each folder
    images: NDArray[np.bytes_]  # (N,) paths
    labels: NDArray[np.int32]  # (N,)

    def __len__(self) -> int:
        return len(self.images)

    def path(self, index: int) -> str:
        """Path of one image, relative to the split folder."""
        return os.fsdecode(self.images[index])


ARRAYS = ("folders", "stamps", "images", "labels")  # fields of a TreeIndex in the cache file


def stamp(folder: str | Path) -> tuple[int, int]:
    """Modification and inode change time of a folder, in ns; tar and rsync reset the former but not the latter."""
    status = os.stat(folder)
    return status.st_mtime_ns, status.st_ctime_ns


def _raise(error: OSError) -> None:
    # If it were skipped, its images would be missing from the cached index for good.
    raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error


def scan(
    split: Path,
    classes: list[str],
    unreadable: Callable[[OSError], object] = _raise,
    ignored: Callable[[str], object] | None = None,
) -> TreeIndex:
    """List the images in the class folders: the same files as torchvision's ImageFolder, in the same order.

    Args:
        split: the split folder.
        classes: names of its class folders, in label order.
        unreadable: called with the error of each folder that cannot be read; raises a DataError by default.
        ignored: called with the path of each file without an image extension.
    """
    folders, stamps = [b""], [stamp(split)]
    paths: list[bytes] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        for folder, _, files in sorted(os.walk(split / name, onerror=unreadable, followlinks=True)):
            images = sorted(file for file in files if has_file_allowed_extension(file, IMG_EXTENSIONS))
            if ignored:
                for file in set(files).difference(images):
                    ignored(os.path.join(folder, file))
            relative = os.path.relpath(folder, split)
            prefix = os.fsencode(os.path.join(relative, ""))
            paths += [prefix + os.fsencode(image) for image in images]  # faster than os.path.join
            labels += [label] * len(images)
            folders.append(os.fsencode(relative))
            stamps.append(stamp(folder))
    return TreeIndex(
        classes,
        np.array(folders, np.bytes_),
        np.array(stamps, np.int64),
        np.array(paths, np.bytes_),
        np.array(labels, np.int32),
    )


def find_images(split: Path, classes: list[str]) -> TreeIndex:
    """The index of a split folder, from the cache if no folder has changed.

    Raises DataError if a folder cannot be read, or a class has no images.
    """
    file = cache_file(split)
    about = {"version": VERSION, "folder": str(split.resolve()), "extensions": IMG_EXTENSIONS, "classes": classes}
    header = json.dumps(about).encode()
    index = _read(file, header, classes) if file else None
    if index is None or _changed(index, split):
        start = time.time_ns()
        index = scan(split, classes)
        if file and index.stamps.max() < start - TICK:
            _write(file, header, index)
    images_of = np.bincount(index.labels, minlength=len(classes))
    empty = [classes[label] for label in np.flatnonzero(images_of == 0)]
    if empty:
        raise DataError(f"{split} has classes without images, fill or remove them: {name_first(empty)}")
    return index


def _changed(index: TreeIndex, split: Path) -> bool:
    """Whether a folder has changed since the index was built."""
    try:
        now = [stamp(os.path.join(split, os.fsdecode(folder))) for folder in index.folders]
    except OSError:  # gone
        return True
    return not np.array_equal(now, index.stamps)


def cache_file(split: Path) -> Path | None:
    """Cache file of a folder's index; None without a cache folder."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    try:  # by the XDG specification a relative path is ignored
        home = Path(given) if os.path.isabs(given) else Path.home() / ".cache"
    except RuntimeError:  # a user without a home
        return None
    key = hashlib.sha256(os.fsencode(split.resolve())).hexdigest()[:32]
    return home / "noah_lightning" / "index" / f"{key}.npz"


def _read(file: Path, header: bytes, classes: list[str]) -> TreeIndex | None:
    """The index in a file, if it has this header."""
    with suppress(Exception), np.load(file, allow_pickle=False) as arrays:  # missing or truncated
        if arrays["about"].tobytes() == header:
            return TreeIndex(classes, *(arrays[name] for name in ARRAYS))
    return None


def _write(file: Path, header: bytes, index: TreeIndex) -> None:
    """Write atomically, as other processes may read or write the file at the same time."""
    with suppress(OSError):  # not writable or full: no cache
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent) as folder:
            part = Path(folder, file.name)
            arrays = {name: getattr(index, name) for name in ARRAYS}
            np.savez(part, about=np.frombuffer(header, np.uint8), **arrays)
            part.replace(file)
