"""The tree of a data set: classes, counts, copies, and the published ImageNet."""

import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from timm.data import ImageNetInfo
from torchvision.datasets.folder import IMG_EXTENSIONS, has_file_allowed_extension

from noah_lightning.data.index import Names
from noah_lightning.data.tree import WANTED, list_split, require_root
from noah_lightning.errors import DataError
from noah_lightning.tools.check_data.report import Counts, Findings

SPLITS = ("train", "val")
ARCHIVES = (".tar", ".tgz", ".gz", ".zip", ".part")


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


IMAGES = {"train": 1_281_167, "val": 50_000}
PER_CLASS = {"train": (732, 1300), "val": (50, 50)}  # least and most
ENOUGH = 500  # of the 1000 classes; with fewer it is meant to be a part, such as ImageNet-100


def is_imagenet(counts: Counts) -> bool:
    """Whether these classes are ImageNet's, some missing or superfluous ones aside."""
    return len(_wnids() & {name for images_of in counts.values() for name in images_of}) >= ENOUGH


def compare_with_imagenet(counts: Counts, findings: Findings) -> None:
    """Sorted by name, as loaders do it, the classes have ImageNet's labels exactly if they are the same set."""
    for split, images_of in counts.items():
        for name in _wnids() - set(images_of):
            findings.add("imagenet-missing", f"{split}/{name}")
        for name in set(images_of) - _wnids():
            findings.add("imagenet-extra", f"{split}/{name}")
        _compare_images(split, images_of, findings)


def _compare_images(split: str, images_of: Mapping[str, int], findings: Findings) -> None:
    least, most = PER_CLASS[split]
    published = str(least) if least == most else f"{least} to {most}"
    for name, images in images_of.items():
        if name in _wnids() and images and not least <= images <= most:
            findings.add("imagenet-count", f"{split}/{name} ({images:,}, published {published})")
    total = sum(images_of.values())
    if total != IMAGES[split]:
        findings.add("imagenet-total", f"{split}/ ({total:,}, published {IMAGES[split]:,})")


@cache
def _wnids() -> frozenset[str]:
    return frozenset(ImageNetInfo().label_names())


# ImageNet was collected from the web and has a few such pairs itself, which nobody removes.
PUBLISHED_SHARE = 1e-3  # of all images


def find_copies(
    classes: Sequence[ClassFolder], digests: NDArray[np.uint64], findings: Findings, imagenet: bool
) -> None:
    """Compares all images.

    Args:
        classes: in the order of ``digests``.
        digests: (N,) one for each image of all classes, 0 where there is nothing to compare.
        findings: gets an item for each set of equal files.
        imagenet: whether a few copies are as published.
    """
    ends = np.cumsum([len(folder.images) for folder in classes])

    def place(index: int) -> tuple[ClassFolder, str]:
        number = int(np.searchsorted(ends, index, side="right"))
        folder = classes[number]
        return folder, folder.images[index - int(ends[number]) + len(folder.images)]

    found: list[tuple[str, str]] = []
    for group in _equal(digests):
        found += _judge([place(int(index)) for index in group])
    grave = sum(kind != "repeated" for kind, _ in found)
    published = imagenet and grave <= PUBLISHED_SHARE * len(digests)
    for kind, item in found:
        findings.add("published-copies" if published and kind != "repeated" else kind, item)


def find_equal_classes(classes: Sequence[ClassFolder], digests: NDArray[np.uint64], findings: Findings) -> None:
    """Compares the classes of each split as sets of images; arguments as those of :func:`find_copies`."""
    names: defaultdict[tuple[str, bytes], list[str]] = defaultdict(list)
    start = 0
    for folder in classes:
        images = np.unique(digests[start : start + len(folder.images)])
        start += len(folder.images)
        if images.any():
            names[folder.split, images.tobytes()].append(f"{folder.split}/{folder.name}")
    for equal in names.values():
        if len(equal) > 1:
            findings.add("classes-alike", " = ".join(equal))


def _equal(digests: NDArray[np.uint64]) -> Iterator[NDArray[np.intp]]:
    """Indices of files that are equal, at least two at a time."""
    order = np.argsort(digests, kind="stable")
    order = order[digests[order] != 0]
    borders = np.flatnonzero(np.diff(digests[order])) + 1
    starts, ends = np.append(0, borders), np.append(borders, len(order))
    for i in np.flatnonzero(ends - starts > 1):
        yield order[starts[i] : ends[i]]


def _judge(places: Sequence[tuple[ClassFolder, str]]) -> Iterator[tuple[str, str]]:
    """Kinds and items for the files of equal content, given by their class and path."""
    if len({folder.split for folder, _ in places}) > 1:
        yield "leak", " = ".join(path for _, path in places)
    for split in ("train", "val"):
        here = [(folder.name, path) for folder, path in places if folder.split == split]
        if len(here) > 1:
            kind = "label-conflict" if len({name for name, _ in here}) > 1 else "repeated"
            yield kind, " = ".join(path for _, path in here)
