"""Report of ``noah check-data``: kinds of problems, findings, and their output."""

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal

from noah_lightning.analysis.tables import Table

SMALLEST = 8  # pixels per side
SHOWN, LONGEST = 3, 240  # items per kind, characters per item; the JSON has all

Severity = Literal["problem", "note"]  # a problem ends a training or falsifies its result
SEVERITIES: tuple[Severity, Severity] = ("problem", "note")
Counts = dict[str, dict[str, int]]  # split → class → images

# In the order in which they are reported.
KINDS: dict[str, tuple[Severity, str]] = {
    "missing-split": ("problem", "split folder missing"),
    "stray-image": ("problem", "image or archive directly in a split, outside the class folders"),
    "only-in-train": ("problem", "class only in train/"),
    "only-in-val": ("problem", "class only in val/"),
    "empty-class": ("problem", "class without images"),
    "unreadable-folder": ("problem", "folder that cannot be read"),
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
    "ignored": ("note", "file without an image extension, ignored"),
}


class Findings:
    """Findings by kind; an item names a file, a folder, or several that belong together."""

    def __init__(self) -> None:
        self._items: defaultdict[str, list[str]] = defaultdict(list)

    def add(self, kind: str, item: str) -> None:
        """Add a finding; ``kind`` is a key of :data:`KINDS`."""
        self._items[kind].append(printable(item))

    def of(self, severity: Severity) -> dict[str, list[str]]:
        """Sorted items of each kind found."""
        return {
            kind: sorted(self._items[kind])
            for kind, (its_severity, _) in KINDS.items()
            if its_severity == severity and kind in self._items
        }


def printable(name: str) -> str:
    """The name with control characters and undecodable bytes escaped; quoted if it begins or ends with a space."""
    shown = name if name.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)
    return shown if shown == shown.strip() else repr(shown)


@dataclass(frozen=True)
class Report:
    """Result of a check."""

    root: Path  # as given
    counts: Counts
    imagenet: bool  # whether it was compared with ImageNet
    findings: Findings

    @property
    def images(self) -> int:
        return sum(sum(images_of.values()) for images_of in self.counts.values())

    @property
    def clean(self) -> bool:
        """Whether there are no problems; there may be notes."""
        return not self.findings.of("problem")

    @property
    def verdict(self) -> str:
        """One line such as ``3 problems of 2 kinds in 1,200 images, 1 note``."""
        problems, notes = (self.findings.of(severity).values() for severity in SEVERITIES)
        found = f"{_plural(sum(map(len, problems)), 'problem')} of {_plural(len(problems), 'kind')}"
        text = f"{found if problems else 'no problems'} in {self.images:,} images"
        return f"{text}, {_plural(sum(map(len, notes)), 'note')}" if notes else text

    def show(self) -> None:
        """Print the counts, the first items of each kind, and the verdict."""
        print(f"{printable(str(self.root))}{', compared with ImageNet' if self.imagenet else ''}")
        columns = ("split", "classes", "images", "least/class", "median", "most")
        Table(columns, [_row(split, images_of) for split, images_of in self.counts.items()], left=("split",)).show()
        for severity in SEVERITIES:
            for kind, items in self.findings.of(severity).items():
                print(f"{severity}: {KINDS[kind][1]} ({len(items):,})")
                for item in items[:SHOWN]:
                    print(f"    {item if len(item) <= LONGEST else item[: LONGEST - 1] + '…'}")
                if len(items) > SHOWN:
                    print(f"    … and {len(items) - SHOWN:,} more; see --json")
        print(self.verdict)

    def json(self) -> str:
        """All findings as JSON."""
        content = {
            "root": printable(str(self.root)),
            "verdict": self.verdict,
            "clean": self.clean,
            "imagenet": self.imagenet,
            "images": self.images,
            "classes": {
                split: {printable(name): images for name, images in images_of.items()}
                for split, images_of in self.counts.items()
            },
            "findings": [
                {"severity": severity, "kind": kind, "what": KINDS[kind][1], "count": len(items), "items": items}
                for severity in SEVERITIES
                for kind, items in self.findings.of(severity).items()
            ],
        }
        return json.dumps(content, indent=2)


def _plural(number: int, word: str) -> str:
    return f"{number:,} {word}{'s' if number > 1 else ''}"


def _row(split: str, images_of: Mapping[str, int]) -> list[str]:
    images = sorted(images_of.values()) or [0]
    figures = (len(images_of), sum(images), images[0], median(images), images[-1])
    return [split, *(f"{figure:,.10g}" for figure in figures)]
