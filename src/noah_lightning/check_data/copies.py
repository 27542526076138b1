"""The same bytes in several files: between the splits, under several labels, or just twice."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from noah_lightning.check_data.findings import Findings
from noah_lightning.check_data.listing import ClassFolder

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
