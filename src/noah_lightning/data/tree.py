"""Class folders in root/train/<class>/ and root/val/<class>/, with checks for common mistakes.

Torch is not imported here, because the classes are counted while the configuration is composed.
"""

import os
from pathlib import Path

from noah_lightning.errors import DataError, count, name_first, one_line

WANTED = "it must hold train/<class>/ and val/<class>/ folders of images"


def given_root(root: str | None) -> Path:
    """``root`` with ``~`` expanded, existing or not; raises DataError if it is not set."""
    if root is None or root == "":
        raise DataError(
            "data.root is not set: add data.root=/path/to/dataset, "
            "or experiment=demo, which runs without any data set on disk"
        )
    if not isinstance(root, str):
        raise DataError(f"data.root={root!r} must be a path")
    try:
        path = Path(root).expanduser()
        path.exists()
    except (OSError, RuntimeError) as error:  # a name that is too long; a user without a home
        raise DataError(f"data.root={root[:80]} is not a path: {one_line(error)}") from error
    return path


def require_root(root: Path) -> None:
    """Raise DataError unless ``root`` is a folder."""
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise DataError(f"data.root={root} {what}: {WANTED}")


def list_split(root: Path, split: str) -> tuple[list[str], list[str]]:
    """Sorted names of the folders and of the files directly in root/split, without hidden ones.

    Raises DataError if the root or the split does not exist, or cannot be read.
    """
    require_root(root)
    folder = root / split
    if not folder.is_dir():
        raise DataError(f"data.root={root} has no {split}/ folder: {WANTED}")
    folders: list[str] = []
    files: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.startswith("."):  # .DS_Store, .ipynb_checkpoints
                    (folders if entry.is_dir() else files).append(entry.name)
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}") from error
    return sorted(folders), sorted(files)


def class_folders(root: Path, split: str) -> list[str]:
    """Sorted class folders in root/split; raises DataError as :func:`list_split`, and if there are none."""
    folders, files = list_split(root, split)
    folder = root / split
    if folders:
        return folders
    if files:
        advice = f"sort its images into {split}/<class>/ folders"
        raise DataError(f"{folder} holds {count(len(files), 'file')} and no class folders: {advice}")
    raise DataError(f"{folder} is empty: {WANTED}")


def require_same_classes(root: Path) -> None:
    """Raise DataError unless train/ and val/ have the same class folders."""
    train, val = set(class_folders(root, "train")), set(class_folders(root, "val"))
    parts = [
        f"{len(names)} only in {split}/ ({name_first(sorted(names))})"
        for split, names in (("train", train - val), ("val", val - train))
        if names
    ]
    if parts:
        raise DataError(f"the classes of train/ and val/ in data.root={root} differ: {' and '.join(parts)}")


def count_classes(root: str | None) -> int:
    """Number of class folders in root/train; raises what :func:`given_root` and :func:`class_folders` do."""
    return len(class_folders(given_root(root), "train"))
