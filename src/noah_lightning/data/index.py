"""The images of a split folder, listed once: names, labels, and what tells that the list is out of date.

Arrays, not lists: a million Python strings would take a hundred megabytes, and reading one changes its reference
count, which gives every loading process a copy of its own.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torchvision.datasets.folder import IMG_EXTENSIONS, has_file_allowed_extension

from noah_lightning.errors import DataError


@dataclass(frozen=True)
class Names:
    """N names, each in the bytes that the file system has for it."""

    text: NDArray[np.uint8]  # all of them, one after the other
    ends: NDArray[np.int64]  # (N,)

    @classmethod
    def of(cls, names: Sequence[str]) -> "Names":
        encoded = [os.fsencode(name) for name in names]
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
        return cls(np.frombuffer(b"".join(encoded), np.uint8), np.cumsum(lengths))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        start = self.ends[index - 1] if index else 0
        return os.fsdecode(self.text[start : self.ends[index]].tobytes())


@dataclass(frozen=True)
class TreeIndex:
    """N images in the class folders of one split, D folders in all, in torchvision's order.

    Attributes:
        classes: names in label order.
        folders: D paths relative to the split folder, which is "" and comes first.
        stamps: int64 (D, 2), when each folder was changed, see :func:`stamp`.
        files: N names.
        folder_of: int32 (N,), where each file lies.
        labels: int32 (N,).
    """

    classes: list[str]
    folders: Names
    stamps: NDArray[np.int64]
    files: Names
    folder_of: NDArray[np.int32]
    labels: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.files)

    def path(self, index: int) -> str:
        """Of one image, relative to the split folder."""
        return os.path.join(self.folders[int(self.folder_of[index])], self.files[index])


def stamp(folder: str | Path) -> tuple[int, int]:
    """When the folder's list of names was changed last, and when anything about the folder was, in ns.

    The second one is for tools such as tar and rsync, which set the first one back when they are done.
    """
    status = os.stat(folder)
    return status.st_mtime_ns, status.st_ctime_ns


def scan(split: Path, classes: list[str]) -> TreeIndex:
    """Walks through the class folders: the files that torchvision's ImageFolder would list, in its order.

    Args:
        classes: names of folders in ``split``, in label order.

    Raises:
        DataError: a folder cannot be read; it would else be missing, now and from the index that is kept.
    """
    folders, stamps = [""], [stamp(split)]
    files: list[str] = []
    folder_of: list[int] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        for folder, _, names in sorted(os.walk(split / name, onerror=_give_up, followlinks=True)):
            images = sorted(file for file in names if has_file_allowed_extension(file, IMG_EXTENSIONS))
            files += images
            folder_of += [len(folders)] * len(images)
            labels += [label] * len(images)
            folders.append(os.path.relpath(folder, split))
            stamps.append(stamp(folder))
    return TreeIndex(
        classes,
        Names.of(folders),
        np.array(stamps, np.int64),
        Names.of(files),
        np.array(folder_of, np.int32),
        np.array(labels, np.int32),
    )


def _give_up(error: OSError) -> None:
    raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error


def unchanged(index: TreeIndex, split: Path) -> bool:
    """Whether every folder of the index is as it was when the index was made."""
    try:
        now = [stamp(os.path.join(split, index.folders[i])) for i in range(len(index.folders))]
    except OSError:  # gone
        return False
    return np.array_equal(now, index.stamps)
