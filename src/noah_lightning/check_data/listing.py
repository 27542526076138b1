"""The tree of a data set: its class folders with their images, and what is wrong before any image is read."""

import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS, has_file_allowed_extension

from noah_lightning.check_data.findings import Findings
from noah_lightning.data.index import Names
from noah_lightning.data.tree import WANTED, list_split, require_root
from noah_lightning.errors import DataError

SPLITS = ("train", "val")
ARCHIVES = (".tar", ".tgz", ".gz", ".zip", ".part")
Counts = dict[str, dict[str, int]]  # split → class → images


@dataclass(frozen=True)
class ClassFolder:
    split: str
    name: str
    images: Names  # paths relative to the root


def list_tree(root: Path, findings: Findings) -> list[ClassFolder]:
    """The class folders of both splits, with the images that training would load, in its order.

    Raises:
        DataError: no such folder, no split in it, or a split that cannot be read.
    """
    require_root(root)
    if not any((root / split).is_dir() for split in SPLITS):
        raise DataError(f"{root} has neither train/ nor val/: {WANTED}")
    classes = []
    for split in SPLITS:
        if not (root / split).is_dir():
            findings.add("missing-split", f"{split}/")
            continue
        folders, files = list_split(root, split)
        for name in files:
            findings.add(_kind_of_stray(root / split / name), f"{split}/{name}")
        classes += [_list_class(root, split, name, findings) for name in folders]
    return classes


def count(classes: Iterable[ClassFolder]) -> Counts:
    """Images of each class, for each split that there is."""
    counts: Counts = defaultdict(dict)
    for folder in classes:
        counts[folder.split][folder.name] = len(folder.images)
    return dict(counts)


def compare_splits(counts: Counts, findings: Findings) -> None:
    """Classes that only one split has, that have no images, and those that are hard to tell apart."""
    if len(counts) == len(SPLITS):
        train, val = (set(counts[split]) for split in SPLITS)
        for name in train - val:
            findings.add("only-in-train", name)
        for name in val - train:
            findings.add("only-in-val", name)
    for split, images_of in counts.items():
        for name, images in images_of.items():
            if images == 0:
                findings.add("empty-class", f"{split}/{name}")
    alike: defaultdict[str, list[str]] = defaultdict(list)
    for name in sorted({name for images_of in counts.values() for name in images_of}):
        alike[" ".join(unicodedata.normalize("NFKC", name).casefold().split())].append(name)
    for names in alike.values():
        if len(names) > 1:
            findings.add("classes-named-alike", " = ".join(map(ascii, names)))  # escapes show what differs


def _kind_of_stray(path: Path) -> str:
    if not path.exists():
        return "broken-link"
    return "stray-image" if has_file_allowed_extension(path.name, (*IMG_EXTENSIONS, *ARCHIVES)) else "ignored"


def _list_class(root: Path, split: str, name: str, findings: Findings) -> ClassFolder:
    """As :func:`noah_lightning.data.index.scan` does, but nothing ends it."""

    def unreadable(error: OSError) -> None:
        findings.add("unreadable-folder", f"{os.path.relpath(error.filename, root)} ({error.strerror})")

    images: list[str] = []
    for folder, _, files in sorted(os.walk(root / split / name, onerror=unreadable, followlinks=True)):
        below = os.path.relpath(folder, root)
        for file in sorted(files):
            path = f"{below}/{file}"
            if not has_file_allowed_extension(file, IMG_EXTENSIONS):
                findings.add("ignored", path)
                continue
            images.append(path)
            if _hidden(path.split("/")[2:]):
                findings.add("hidden", path)
    return ClassFolder(split, name, Names.of(images))


def _hidden(parts: Sequence[str]) -> bool:
    return any(part.startswith(".") for part in parts)
