"""Index of the images of a split: names and labels, cached on disk until a folder changes.

Names are in arrays, because a million Python strings take a hundred megabytes, and reading one changes its reference
count, so that every DataLoader worker would get its own copy of the memory.
"""

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torchvision.datasets.folder import IMG_EXTENSIONS, has_file_allowed_extension

from noah_lightning.errors import DataError, name_first

VERSION = 2  # of the cache file
# Two changes within one tick of the file system's clock look like one, so the index of a tree that has just
# been changed is not cached. The coarsest clock, that of FAT, ticks every 2 s.
TICK = 2 * 10**9  # ns


@dataclass(frozen=True)
class TreeIndex:
    """N images in the D folders of one split, in torchvision's order; names are as the file system encodes them.

    Attributes:
        classes: names in label order.
        folders: bytes (D,), paths relative to the split folder, which comes first as "".
        stamps: int64 (D, 2), :func:`stamp` of each folder.
        files: bytes (N,), names of the images.
        folder_of: int32 (N,), index of each image's folder in ``folders``.
        labels: int32 (N,).
    """

    classes: list[str]
    folders: NDArray[np.bytes_]
    stamps: NDArray[np.int64]
    files: NDArray[np.bytes_]
    folder_of: NDArray[np.int32]
    labels: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.files)

    def path(self, index: int) -> str:
        """Path of one image, relative to the split folder."""
        return os.path.join(os.fsdecode(self.folders[self.folder_of[index]]), os.fsdecode(self.files[index]))


ARRAYS = ("folders", "stamps", "files", "folder_of", "labels")  # fields of a TreeIndex in the cache file


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
        classes: names of folders in ``split``, in label order.
        unreadable: called with the error of each folder that cannot be read; raises a DataError by default.
        ignored: called with the path of each file without an image extension.
    """
    folders, stamps = [b""], [stamp(split)]
    files: list[bytes] = []
    folder_of: list[int] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        for folder, _, names in sorted(os.walk(split / name, onerror=unreadable, followlinks=True)):
            images = sorted(file for file in names if has_file_allowed_extension(file, IMG_EXTENSIONS))
            if ignored:
                for file in set(names).difference(images):
                    ignored(os.path.join(folder, file))
            files += map(os.fsencode, images)
            folder_of += [len(folders)] * len(images)
            labels += [label] * len(images)
            folders.append(os.fsencode(os.path.relpath(folder, split)))
            stamps.append(stamp(folder))
    return TreeIndex(
        classes,
        np.array(folders, np.bytes_),
        np.array(stamps, np.int64),
        np.array(files, np.bytes_),
        np.array(folder_of, np.int32),
        np.array(labels, np.int32),
    )


def unchanged(index: TreeIndex, split: Path) -> bool:
    """Whether no folder has changed since the index was built."""
    try:
        now = [stamp(os.path.join(split, os.fsdecode(folder))) for folder in index.folders]
    except OSError:  # gone
        return False
    return np.array_equal(now, index.stamps)


def find_images(split: Path, classes: list[str]) -> TreeIndex:
    """The index of a split folder, from the cache if no folder has changed.

    Args:
        split: the split folder.
        classes: names of its class folders, in label order.

    Raises:
        DataError: a folder cannot be read, or a class has no images.
    """
    file = cache_file(split)
    index = _read(file, split) if file else None
    if index is None or index.classes != classes or not unchanged(index, split):
        start = time.time_ns()
        index = scan(split, classes)
        if file and index.stamps.max() < start - TICK:
            _write(file, split, index)
    images_of = np.bincount(index.labels, minlength=len(classes))
    empty = [classes[label] for label in np.flatnonzero(images_of == 0)]
    if empty:
        raise DataError(f"{split} has classes without images, fill or remove them: {name_first(empty)}")
    return index


def cache_file(split: Path) -> Path | None:
    """Cache file of a folder's index; None without a cache folder."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    try:  # by the XDG specification a relative path is ignored
        home = Path(given) if os.path.isabs(given) else Path.home() / ".cache"
    except RuntimeError:  # a user without a home
        return None
    key = hashlib.sha256(os.fsencode(split.resolve())).hexdigest()[:32]
    return home / "noah_lightning" / "index" / f"{key}.npz"


def _about(split: Path) -> dict[str, object]:
    """Header of the cache file of a folder."""
    return {"version": VERSION, "folder": str(split.resolve()), "extensions": list(IMG_EXTENSIONS)}


def _read(file: Path, split: Path) -> TreeIndex | None:
    """The index in a file; None if it cannot be read."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            about = json.loads(arrays["about"].tobytes())
            classes = about.pop("classes")
            return TreeIndex(classes, *(arrays[name] for name in ARRAYS)) if about == _about(split) else None
    except Exception:  # missing, truncated or of another version: the folder is listed instead
        return None


def _write(file: Path, split: Path, index: TreeIndex) -> None:
    """Write atomically, as other processes may read or write the file at the same time."""
    about = json.dumps({**_about(split), "classes": index.classes}).encode()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=file.parent, suffix=".part")
    except OSError:  # not writable: no cache
        return
    try:
        with os.fdopen(handle, "wb") as stream:
            arrays = {name: getattr(index, name) for name in ARRAYS}
            np.savez(stream, about=np.frombuffer(about, np.uint8), **arrays)
        os.replace(part, file)
    except OSError:  # disk full
        os.unlink(part)
