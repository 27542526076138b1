"""Check of a folder tree of images: classes, counts, every file, duplicates, comparison with ImageNet."""

import os
import sys
from contextlib import closing
from functools import cache, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from timm.data import ImageNetInfo
from torchvision.datasets.folder import IMG_EXTENSIONS, has_file_allowed_extension

from noah_lightning.data.index import TreeIndex, scan
from noah_lightning.data.tree import WANTED, list_split, require_root
from noah_lightning.errors import DataError
from noah_lightning.loggers.progress import progress
from noah_lightning.tools.check_images import look_at_all
from noah_lightning.tools.check_report import Counts, Findings, Report

SPLITS = ("train", "val")
ARCHIVES = (".tar", ".tgz", ".gz", ".zip", ".part")

Trees = dict[str, TreeIndex]  # split → its images


def check_data(root: Path) -> Report:
    """Check ``root/train/<class>/`` and ``root/val/<class>/``, with progress on standard error.

    Raises:
        DataError: the folder does not exist, or has neither split.
        KeyboardInterrupt: after a line with the number of images checked.
    """
    root = root.expanduser()
    findings = Findings()
    trees = list_trees(root, findings)
    counts = {split: _count(tree) for split, tree in trees.items()}
    compare_splits(counts, findings)
    imagenet = is_imagenet(counts)
    if imagenet:
        compare_with_imagenet(counts, findings)
    digests = _look_at_images(root, trees, findings)
    if not imagenet:  # ImageNet itself has a few duplicates; its counts are checked instead
        find_copies(trees, digests, findings)
    return Report(root, counts, imagenet, findings)


def list_trees(root: Path, findings: Findings) -> Trees:
    """The images that training loads, in the same order.

    Raises:
        DataError: the folder does not exist, has no split, or a split cannot be read.
    """
    require_root(root)
    if not any((root / split).is_dir() for split in SPLITS):
        raise DataError(f"{root} has neither train/ nor val/: {WANTED}")
    relative = partial(os.path.relpath, start=root)
    trees = {}
    for split in SPLITS:
        if not (root / split).is_dir():
            findings.add("missing-split", f"{split}/")
            continue
        classes, files = list_split(root, split)
        for name in files:
            findings.add(_kind_of_stray(root / split / name), f"{split}/{name}")
        trees[split] = scan(
            root / split,
            classes,
            lambda error: findings.add("unreadable-folder", f"{relative(error.filename)} ({error.strerror})"),
            lambda path: findings.add("ignored", relative(path)),
        )
    return trees


def _kind_of_stray(path: Path) -> str:
    if not path.exists():  # a link, perhaps to a class folder
        return "unreadable"
    return "stray-image" if has_file_allowed_extension(path.name, (*IMG_EXTENSIONS, *ARCHIVES)) else "ignored"


def _count(tree: TreeIndex) -> dict[str, int]:
    """Number of images of each class."""
    return dict(zip(tree.classes, np.bincount(tree.labels, minlength=len(tree.classes)).tolist(), strict=True))


def compare_splits(counts: Counts, findings: Findings) -> None:
    """Find classes that are only in one split, and classes without images."""
    for split, other in (SPLITS, SPLITS[::-1]):
        for name, images in counts.get(split, {}).items():
            if other in counts and name not in counts[other]:
                findings.add(f"only-in-{split}", name)
            if images == 0:
                findings.add("empty-class", f"{split}/{name}")


IMAGES = {"train": 1_281_167, "val": 50_000}
PER_CLASS = {"train": (732, 1300), "val": (50, 50)}  # minimum and maximum
ENOUGH = 500  # of the 1000 classes; with fewer it is a subset, such as ImageNet-100


@cache
def _wnids() -> frozenset[str]:
    return frozenset(ImageNetInfo().label_names())


def is_imagenet(counts: Counts) -> bool:
    """Whether at least half of ImageNet's classes are there."""
    return len(_wnids() & {name for images_of in counts.values() for name in images_of}) >= ENOUGH


def compare_with_imagenet(counts: Counts, findings: Findings) -> None:
    """Find differences from ImageNet's classes and counts; with other classes, labels would be shifted."""
    for split, images_of in counts.items():
        for name in _wnids() ^ images_of.keys():
            findings.add("imagenet-missing" if name in _wnids() else "imagenet-extra", f"{split}/{name}")
        least, most = PER_CLASS[split]
        published = f"{least} to {most}" if least < most else str(least)
        for name in _wnids() & images_of.keys():
            images = images_of[name]
            if images and not least <= images <= most:
                findings.add("imagenet-count", f"{split}/{name} ({images:,}, published {published})")
        total = sum(images_of.values())
        if total != IMAGES[split]:
            findings.add("imagenet-total", f"{split}/ ({total:,}, published {IMAGES[split]:,})")


def _look_at_images(root: Path, trees: Trees, findings: Findings) -> NDArray[np.uint64]:
    """Decode all images; returns their digests (N,), those of train/ first."""
    digests = np.zeros(sum(map(len, trees.values())), np.uint64)
    paths = (f"{split}/{tree.path(image)}" for split, tree in trees.items() for image in range(len(tree)))
    done = 0
    try:
        with progress("checking", len(digests)) as advance, closing(look_at_all(str(root), paths)) as looks:
            for path, look in looks:
                digests[done] = look.digest
                for kind, detail in look.remarks:
                    findings.add(kind, f"{path} ({detail})" if detail else path)
                done += 1
                advance()
    except KeyboardInterrupt:
        print(f"noah: interrupted after {done:,} of {len(digests):,} images", file=sys.stderr)
        raise
    return digests


def find_copies(trees: Trees, digests: NDArray[np.uint64], findings: Findings) -> None:
    """Find identical files in both splits, or in several classes of a split; ``digests`` (N,) of 0 are skipped."""
    order = np.argsort(digests, kind="stable")
    order = order[digests[order] != 0]
    for equal in np.split(order, np.flatnonzero(np.diff(digests[order])) + 1):
        if len(equal) < 2:
            continue
        places = [_place(trees, number) for number in equal.tolist()]
        if len({split for split, _, _ in places}) > 1:
            findings.add("leak", " = ".join(path for _, _, path in places))
        for split in trees:
            here = [(label, path) for its_split, label, path in places if its_split == split]
            if len({label for label, _ in here}) > 1:
                findings.add("label-conflict", " = ".join(path for _, path in here))


def _place(trees: Trees, number: int) -> tuple[str, int, str]:
    """Split, label and path of an image by its index among all images."""
    for split, tree in trees.items():
        if number < len(tree):
            return split, int(tree.labels[number]), f"{split}/{tree.path(number)}"
        number -= len(tree)
    raise IndexError(number)
