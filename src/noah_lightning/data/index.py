"""Index of the images of a split: paths and labels, cached on disk until a folder changes.

Paths are in an array, because a million Python strings take a hundred megabytes, and reading one changes its
reference count, so that every DataLoader worker would get its own copy of the memory.
"""

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torchvision.datasets.folder import IMG_EXTENSIONS, has_file_allowed_extension

from noah_lightning.errors import DataError, name_first, one_line

VERSION = 4  # of the cache file
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


Report = Callable[[str, str, str], object]  # called with kind, path and detail of what is no image


def _refuse(kind: str, path: str, detail: str) -> None:
    """Raise DataError, as images that were left out would be missing from the cached index for good."""
    match kind:
        case "unreadable-folder":
            raise DataError(f"{path} cannot be read: {detail}")
        case "unreadable":
            raise DataError(f"{path} is {detail}: remove it")
        case "circle":
            raise DataError(f"{path} is a link to a folder that contains it, so it never ends: remove it")


def scan(split: Path, classes: list[str], report: Report = _refuse) -> TreeIndex:
    """List the images in the class folders: the same files as torchvision's ImageFolder, in the same order.

    Args:
        split: the split folder.
        classes: names of its class folders, in label order.
        report: called for each "unreadable-folder", for each "circle" (a link to a folder that contains it), for each
            "unreadable" pipe, socket or device, and for each file that is "ignored" because it has no image
            extension. By default all but the last are a DataError.
    """
    folders, stamps = [b""], [stamp(split)]
    paths: list[bytes] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        for folder, files in sorted(walk(split, name, report)):
            images = sorted(file for file in files if has_file_allowed_extension(file, IMG_EXTENSIONS))
            for file in set(files).difference(images):
                report("ignored", os.path.join(split, folder, file), "")
            prefix = os.fsencode(os.path.join(folder, ""))
            paths += [prefix + os.fsencode(image) for image in images]  # faster than os.path.join
            labels += [label] * len(images)
            folders.append(os.fsencode(folder))
            stamps.append(stamp(split / folder))
    return TreeIndex(
        classes,
        np.array(folders, np.bytes_),
        np.array(stamps, np.int64),
        np.array(paths, np.bytes_),
        np.array(labels, np.int32),
    )


def walk(split: Path, name: str, report: Report) -> Iterator[tuple[str, list[str]]]:
    """The folder ``name`` and those in it, relative to ``split`` and through links, with the names of their files."""
    real, left = split.resolve(), [name]
    while left:
        relative = left.pop()
        folder = os.path.join(split, relative)
        if os.path.islink(folder) and any(os.path.samefile(folder, parent) for parent in (real / relative).parents):
            report("circle", folder, "")
            continue
        try:
            with os.scandir(folder) as entries:
                kinds = [(entry.name, _kind(entry)) for entry in entries]
        except OSError as error:
            report("unreadable-folder", folder, error.strerror or one_line(error))
            continue
        for entry, kind in kinds:
            if kind == "special":
                report("unreadable", os.path.join(folder, entry), "not a regular file")
        yield relative, [entry for entry, kind in kinds if kind == "file"]
        left += [os.path.join(relative, entry) for entry, kind in kinds if kind == "folder"]


def images_in(folder: Path) -> list[Path]:
    """Sorted images in a folder and those in it; raises DataError for what :func:`scan` refuses, and for none."""
    found = [folder / inside / file for inside, files in walk(folder, "", _refuse) for file in files]
    images = sorted(path for path in found if has_file_allowed_extension(path.name, IMG_EXTENSIONS))
    if not images:
        raise DataError(f"{folder} has no images; images are {', '.join(IMG_EXTENSIONS)}")
    return images


def _kind(entry: os.DirEntry[str]) -> str:
    """A folder, a file or a special file, which may block whoever opens it; a link that leads nowhere is a file."""
    try:
        if entry.is_dir():
            return "folder"
        return "file" if entry.is_file() or not os.path.exists(entry.path) else "special"
    except OSError:  # a link to itself
        return "file"


def find_images(split: Path, classes: list[str]) -> TreeIndex:
    """The index of a split folder, from the cache if no folder has changed.

    Raises DataError for what :func:`scan` refuses, and for a class without images.
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
        advice = f"fill or remove them: {name_first(empty)}; images are {', '.join(IMG_EXTENSIONS)}"
        raise DataError(f"{split} has classes without images, {advice}")
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
