"""Check of a folder tree of images before training: classes, counts, every file, copies, the published ImageNet."""

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
    """Checks ``root/train/<class>/`` and ``root/val/<class>/``; progress goes to standard error.

    Raises:
        DataError: no such folder, or neither split in it.
        KeyboardInterrupt: after a line that says how many images were checked.
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
    if not imagenet:  # it was collected from the web and has a few copies itself; its counts say whether it is whole
        find_copies(trees, digests, findings)
    return Report(root, counts, imagenet, findings)


def list_trees(root: Path, findings: Findings) -> Trees:
    """The images that training would load, in its order.

    Raises:
        DataError: no such folder, no split in it, or a split that cannot be read.
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
    """Images of each class."""
    return dict(zip(tree.classes, np.bincount(tree.labels, minlength=len(tree.classes)).tolist(), strict=True))


def compare_splits(counts: Counts, findings: Findings) -> None:
    """Finds classes that only one split has, and those without images."""
    for split, other in (SPLITS, SPLITS[::-1]):
        for name, images in counts.get(split, {}).items():
            if other in counts and name not in counts[other]:
                findings.add(f"only-in-{split}", name)
            if images == 0:
                findings.add("empty-class", f"{split}/{name}")


IMAGES = {"train": 1_281_167, "val": 50_000}
PER_CLASS = {"train": (732, 1300), "val": (50, 50)}  # least and most
ENOUGH = 500  # of the 1000 classes; with fewer it is meant to be a part, such as ImageNet-100


@cache
def _wnids() -> frozenset[str]:
    return frozenset(ImageNetInfo().label_names())


def is_imagenet(counts: Counts) -> bool:
    """Whether these classes are ImageNet's, apart from some that are missing or superfluous."""
    return len(_wnids() & {name for images_of in counts.values() for name in images_of}) >= ENOUGH


def compare_with_imagenet(counts: Counts, findings: Findings) -> None:
    """Sorted by name, as loaders do it, the classes have ImageNet's labels exactly if they are the same set."""
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
    """Decodes all images; returns the digests of those of train/, then of val/."""
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
    """Finds equal files in both splits, and in several classes of a split.

    Args:
        trees: N images in all.
        digests: (N,), one of each image, 0 where there is nothing to compare.
        findings: gets an item for each set of equal files.
    """
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
    """Split, label and path of one of all images."""
    for split, tree in trees.items():
        if number < len(tree):
            return split, int(tree.labels[number]), f"{split}/{tree.path(number)}"
        number -= len(tree)
    raise IndexError(number)
