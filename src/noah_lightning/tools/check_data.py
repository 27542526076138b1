"""Check of a folder tree of images: classes, counts, every file, duplicates, comparison with ImageNet."""

import json
import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray
from timm.data import ImageNetInfo
from torchvision.datasets.folder import IMG_EXTENSIONS, has_file_allowed_extension

from noah_lightning.analysis.tables import Table
from noah_lightning.data.index import TreeIndex, scan
from noah_lightning.data.tree import WANTED, list_split, require_root
from noah_lightning.errors import DataError, count, printable
from noah_lightning.loggers.progress import progress
from noah_lightning.tools.check_images import SMALLEST, look_at_all

SPLITS = ("train", "val")
ARCHIVES = (".tar", ".tgz", ".gz", ".zip", ".part")
SHOWN, LONGEST = 3, 240  # items per kind, characters per item; the JSON has all

Trees = dict[str, TreeIndex]  # split → its images
Counts = dict[str, dict[str, int]]  # split → class → images
Found = defaultdict[str, list[str]]  # kind → items, each a file, a folder, or several that belong together

TURNED = "data=imagefolder turns it, data=imagenet does not (data.exif_orientation)"
# In the order in which they are reported; a problem ends a training or falsifies its result.
KINDS = {
    "missing-split": ("problem", "split folder missing"),
    "stray-image": ("problem", "image or archive directly in a split, outside the class folders"),
    "only-in-train": ("problem", "class only in train/"),
    "only-in-val": ("problem", "class only in val/"),
    "empty-class": ("problem", "class without images"),
    "unreadable-folder": ("problem", "folder that cannot be read"),
    "circle": ("problem", "link to a folder that contains it, not followed: remove it"),
    "imagenet-missing": ("problem", "missing class of ImageNet: all labels after it are shifted"),
    "imagenet-extra": ("problem", "class that is not in ImageNet: all labels after it are shifted"),
    "imagenet-count": ("problem", "class with a different number of images than in ImageNet"),
    "imagenet-total": ("problem", "split with a different number of images than in ImageNet"),
    "unreadable": ("problem", "file that cannot be read"),
    "empty-file": ("problem", "file of zero bytes"),
    "undecodable": ("problem", "file that cannot be decoded"),
    "crash": ("problem", "file that crashes the process that decodes it"),
    "huge": ("problem", "image with more pixels than Pillow's limit, not decoded"),
    "tiny": ("problem", f"image of less than {SMALLEST} pixels per side"),
    "clipped": ("problem", "gray values beyond 8 bits, decoded as black or white: convert them"),
    "leak": ("problem", "same image in train/ and val/"),
    "label-conflict": ("problem", "same image in several classes of a split"),
    "damaged": ("note", "JPEG with damaged data, decoded as far as possible: inspect it"),
    "turned": ("note", f"image with an EXIF orientation: {TURNED}"),
    "ignored": ("note", f"file without an image extension ({' '.join(IMG_EXTENSIONS)}), ignored"),
}


@dataclass(frozen=True)
class Finding:
    """All items of one kind."""

    severity: str
    kind: str
    what: str
    count: int
    items: list[str]


@dataclass(frozen=True)
class Report:
    """Result of a check, with names as :func:`escaped`; its JSON has the same fields."""

    root: str
    verdict: str  # one line such as "3 problems of 2 kinds in 1,200 images, 1 note"
    clean: bool  # no problems; there may be notes
    imagenet: bool  # whether it was compared with ImageNet
    images: int
    classes: Counts
    findings: list[Finding]

    def show(self) -> None:
        """Print the counts, the first items of each kind, and the verdict."""
        print(f"{self.root}{', compared with ImageNet' if self.imagenet else ''}")
        rows = []
        for split, images_of in self.classes.items():
            images = sorted(images_of.values()) or [0]
            figures = (len(images_of), sum(images), images[0], median(images), images[-1])
            rows.append([split, *(f"{figure:,.10g}" for figure in figures)])
        Table(("split", "classes", "images", "least/class", "median", "most"), rows, left=("split",)).show()
        for found in self.findings:
            print(f"{found.severity}: {found.what} ({found.count:,})")
            for item in found.items[:SHOWN]:
                print(f"    {item if len(item) <= LONGEST else item[: LONGEST - 1] + '…'}")
            if found.count > SHOWN:
                print(f"    … and {found.count - SHOWN:,} more; see --json")
        print(self.verdict)

    def json(self) -> str:
        """All findings as JSON."""
        return json.dumps(asdict(self), indent=2)


def check_data(root: Path) -> Report:
    """Check ``root/train/<class>/`` and ``root/val/<class>/``, with progress on standard error.

    Raises:
        DataError: the folder does not exist, or has neither split.
        KeyboardInterrupt: with the number of images checked.
    """
    root = root.expanduser()
    found: Found = defaultdict(list)
    trees = list_trees(root, found)
    counts = {
        split: dict(zip(tree.classes, np.bincount(tree.labels, minlength=len(tree.classes)).tolist(), strict=True))
        for split, tree in trees.items()
    }
    compare_splits(counts, found)
    imagenet = is_imagenet(counts)
    if imagenet:
        compare_with_imagenet(counts, found)
    digests = _look_at_images(root, trees, found)
    if not imagenet:  # ImageNet itself has a few duplicates; its counts are checked instead
        find_copies(trees, digests, found)
    return _report(root, counts, imagenet, found)


def _report(root: Path, counts: Counts, imagenet: bool, found: Found) -> Report:
    findings = [
        Finding(severity, kind, what, len(found[kind]), sorted(map(escaped, found[kind])))
        for kind, (severity, what) in KINDS.items()
        if kind in found
    ]
    problems, notes = ([one.count for one in findings if one.severity == kind] for kind in ("problem", "note"))
    images = sum(sum(images_of.values()) for images_of in counts.values())
    verdict = f"{count(sum(problems), 'problem')} of {count(len(problems), 'kind')}" if problems else "no problems"
    verdict += f" in {count(images, 'image')}" + (f", {count(sum(notes), 'note')}" if notes else "")
    classes = {split: {escaped(name): n for name, n in images_of.items()} for split, images_of in counts.items()}
    return Report(escaped(str(root)), verdict, not problems, imagenet, images, classes, findings)


def escaped(name: str) -> str:
    """The name with control characters and undecodable bytes escaped; quoted if it begins or ends with a space."""
    shown = printable(name)
    return shown if shown == shown.strip() else repr(shown)


def list_trees(root: Path, found: Found) -> Trees:
    """The images that training loads, in the same order.

    Raises:
        DataError: the folder does not exist, has no split, or a split cannot be read.
    """
    require_root(root)
    if not any((root / split).is_dir() for split in SPLITS):
        raise DataError(f"{root} has neither train/ nor val/: {WANTED}")

    def report(kind: str, path: str, detail: str) -> None:
        relative = os.path.relpath(path, root)
        found[kind].append(f"{relative} ({detail})" if detail else relative)

    trees = {}
    for split in SPLITS:
        if not (root / split).is_dir():
            found["missing-split"].append(f"{split}/")
            continue
        classes, files = list_split(root, split)
        for name in files:
            found[_kind_of_stray(root / split / name)].append(f"{split}/{name}")
        trees[split] = scan(root / split, classes, report)
    return trees


def _kind_of_stray(path: Path) -> str:
    if not path.exists():  # a link, perhaps to a class folder
        return "unreadable"
    return "stray-image" if has_file_allowed_extension(path.name, (*IMG_EXTENSIONS, *ARCHIVES)) else "ignored"


def compare_splits(counts: Counts, found: Found) -> None:
    """Find classes that are only in one split, and classes without images."""
    for split, other in (SPLITS, SPLITS[::-1]):
        for name, images in counts.get(split, {}).items():
            if other in counts and name not in counts[other]:
                found[f"only-in-{split}"].append(name)
            if images == 0:
                found["empty-class"].append(f"{split}/{name}")


IMAGES = {"train": 1_281_167, "val": 50_000}
PER_CLASS = {"train": (732, 1300), "val": (50, 50)}  # minimum and maximum
WNIDS = frozenset(ImageNetInfo().label_names())  # names of the 1000 class folders
ENOUGH = 500  # of these; with fewer it is a subset, such as ImageNet-100


def is_imagenet(counts: Counts) -> bool:
    """Whether at least half of ImageNet's classes are there."""
    return len(WNIDS & set().union(*counts.values())) >= ENOUGH


def compare_with_imagenet(counts: Counts, found: Found) -> None:
    """Find differences from ImageNet's classes and counts; with other classes, labels would be shifted."""
    for split, images_of in counts.items():
        for name in WNIDS ^ images_of.keys():
            found["imagenet-missing" if name in WNIDS else "imagenet-extra"].append(f"{split}/{name}")
        least, most = PER_CLASS[split]
        published = f"{least} to {most}" if least < most else str(least)
        for name in WNIDS & images_of.keys():
            images = images_of[name]
            if images and not least <= images <= most:
                found["imagenet-count"].append(f"{split}/{name} ({images:,}, published {published})")
        total = sum(images_of.values())
        if total != IMAGES[split]:
            found["imagenet-total"].append(f"{split}/ ({total:,}, published {IMAGES[split]:,})")


def _all_images(trees: Trees) -> Iterator[tuple[str, int, str]]:
    """Split, label and path of each image."""
    for split, tree in trees.items():
        for image, label in enumerate(tree.labels.tolist()):
            yield split, label, f"{split}/{tree.path(image)}"


def _look_at_images(root: Path, trees: Trees, found: Found) -> NDArray[np.uint64]:
    """Decode all images; returns their digests (N,), those of train/ first."""
    digests = np.zeros(sum(map(len, trees.values())), np.uint64)
    paths = (path for _, _, path in _all_images(trees))
    done = 0
    try:
        with progress("checking", len(digests)) as advance, closing(look_at_all(str(root), paths)) as looks:
            for path, look in looks:
                digests[done] = look.digest
                for kind, detail in look.remarks:
                    found[kind].append(f"{path} ({detail})" if detail else path)
                done += 1
                advance()
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted after {done:,} of {len(digests):,} images") from None
    return digests


def find_copies(trees: Trees, digests: NDArray[np.uint64], found: Found) -> None:
    """Find identical files in both splits, or in several classes of a split; ``digests`` (N,) of 0 are skipped."""
    distinct, numbers = np.unique(digests, return_counts=True)
    repeated = distinct[(numbers > 1) & (distinct != 0)]
    copies: dict[int, list[tuple[str, int, str]]] = {digest: [] for digest in repeated.tolist()}
    for digest, image in zip(digests.tolist(), _all_images(trees), strict=True):
        if digest in copies:
            copies[digest].append(image)
    for same in copies.values():
        if len({split for split, _, _ in same}) > 1:
            found["leak"].append(" = ".join(path for _, _, path in same))
        for split in trees:
            here = [(label, path) for its_split, label, path in same if its_split == split]
            if len({label for label, _ in here}) > 1:
                found["label-conflict"].append(" = ".join(path for _, path in here))
