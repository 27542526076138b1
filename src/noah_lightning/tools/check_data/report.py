"""What can be wrong with a data set: the kinds, and how grave each of them is."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Literal

from noah_lightning.analysis.tables import Table

PROBLEM: Literal["problem"] = "problem"  # would end a training, or falsify its result
NOTE: Literal["note"] = "note"  # worth knowing

SMALLEST = 8  # pixels a side

Counts = dict[str, dict[str, int]]  # split → class → images


@dataclass(frozen=True)
class Kind:
    severity: Literal["problem", "note"]
    what: str


# In the order in which they are told.
KINDS = {
    "missing-split": Kind(PROBLEM, "split folder missing"),
    "stray-image": Kind(PROBLEM, "image or archive straight in a split, sorted into no class"),
    "only-in-train": Kind(PROBLEM, "class of train/ that val/ has not"),
    "only-in-val": Kind(PROBLEM, "class of val/ that train/ has not"),
    "empty-class": Kind(PROBLEM, "class without images"),
    "classes-named-alike": Kind(PROBLEM, "classes whose names differ only in case, blanks or Unicode form"),
    "classes-alike": Kind(PROBLEM, "classes that hold the same images"),
    "unreadable-folder": Kind(PROBLEM, "folder that cannot be read"),
    "imagenet-missing": Kind(PROBLEM, "class of ImageNet that is missing: all labels after it are shifted"),
    "imagenet-extra": Kind(PROBLEM, "class that is none of ImageNet's: all labels after it are shifted"),
    "imagenet-count": Kind(PROBLEM, "class with another number of images than ImageNet has"),
    "imagenet-total": Kind(PROBLEM, "split with another number of images than ImageNet has"),
    "broken-link": Kind(PROBLEM, "link that leads nowhere"),
    "unreadable": Kind(PROBLEM, "file that cannot be read"),
    "empty-file": Kind(PROBLEM, "file of zero bytes"),
    "undecodable": Kind(PROBLEM, "file that cannot be decoded"),
    "crash": Kind(PROBLEM, "file that kills the process that decodes it"),
    "huge": Kind(PROBLEM, "image of more pixels than Pillow trusts, not decoded"),
    "tiny": Kind(PROBLEM, f"image of less than {SMALLEST} pixels a side"),
    "clipped": Kind(PROBLEM, "grey values beyond 8 bits: decoded as good as white or black, convert them"),
    "leak": Kind(PROBLEM, "same image in train/ and val/"),
    "label-conflict": Kind(PROBLEM, "same image in several classes of a split"),
    "published-copies": Kind(NOTE, "same image twice, so few that the published ImageNet may have them"),
    "repeated": Kind(NOTE, "same image several times in a class"),
    "damaged": Kind(NOTE, "JPEG with damaged data, decoded as far as it goes: look at it"),
    "converted": Kind(NOTE, "colour model that is converted to RGB"),
    "other-format": Kind(NOTE, "format other than the name says, decoded all the same"),
    "hidden": Kind(NOTE, "hidden file that is loaded as an image"),
    "ignored": Kind(NOTE, "file that is no image by its name, ignored"),
}


class Findings:
    """What was found, by kind. An item names a file, a folder, or several that belong together."""

    def __init__(self) -> None:
        self._items: defaultdict[str, list[str]] = defaultdict(list)

    def add(self, kind: str, item: str) -> None:
        """``kind`` is a key of :data:`KINDS`."""
        self._items[kind].append(printable(item))

    def of(self, severity: Literal["problem", "note"]) -> dict[str, list[str]]:
        """Items of each kind that was found, sorted: they arrive in the order in which processes end."""
        return {
            kind: sorted(self._items[kind])
            for kind, about in KINDS.items()
            if about.severity == severity and kind in self._items
        }


def printable(name: str) -> str:
    """With escapes for what a terminal would act on and for bytes that are no text; blanks at its ends are quoted."""
    shown = name if name.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)
    return shown if shown == shown.strip() else repr(shown)


SHOWN, LONGEST = 3, 240  # items of a kind, characters of an item: the rest is in the JSON


@dataclass(frozen=True)
class Report:
    """The outcome of a check.

    Attributes:
        root: the folder as given.
        counts: images of each class in each split.
        imagenet: whether it was compared with ImageNet.
        findings: all that was found.
        seconds: that the check took.
        processes: images that each process has looked at, by its id.
    """

    root: Path
    counts: Counts
    imagenet: bool
    findings: Findings
    seconds: float = 0
    processes: Mapping[int, int] = field(default_factory=dict)

    @property
    def images(self) -> int:
        return sum(sum(images_of.values()) for images_of in self.counts.values())

    @property
    def clean(self) -> bool:
        """Whether there are no problems; there may be notes."""
        return not self.findings.of(PROBLEM)

    @property
    def verdict(self) -> str:
        problems, notes = (self.findings.of(severity) for severity in (PROBLEM, NOTE))
        told = f"no problems in {self.images:,} images"
        if problems:
            told = f"{_number(problems, 'problem')} of {_number_of_kinds(problems)} in {self.images:,} images"
        return f"{told}, {_number(notes, 'note')}" if notes else told

    def show(self) -> None:
        """Print it: the first items of each kind, the verdict last."""
        print(f"{printable(str(self.root))}{', compared with ImageNet' if self.imagenet else ''}")
        columns = ("split", "classes", "images", "least/class", "median", "most")
        Table(columns, [_row(split, images_of) for split, images_of in self.counts.items()], left=("split",)).show()
        for severity in (PROBLEM, NOTE):
            for kind, items in self.findings.of(severity).items():
                print(f"{severity}: {KINDS[kind].what} ({len(items):,})")
                for item in items[:SHOWN]:
                    print(f"    {item if len(item) <= LONGEST else item[: LONGEST - 1] + '…'}")
                if len(items) > SHOWN:
                    print(f"    … and {len(items) - SHOWN:,} more; --json has all")
        print(self.verdict)

    def json(self) -> str:
        """Everything in full."""
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
                {"severity": severity, "kind": kind, "what": KINDS[kind].what, "count": len(items), "items": items}
                for severity in (PROBLEM, NOTE)
                for kind, items in self.findings.of(severity).items()
            ],
            "seconds": round(self.seconds, 1),
            "processes": {str(process): images for process, images in self.processes.items()},
        }
        return json.dumps(content, indent=2)


def _number(items_of: Mapping[str, Sequence[str]], word: str) -> str:
    number = sum(map(len, items_of.values()))
    return f"{number:,} {word}{'s' if number > 1 else ''}"


def _number_of_kinds(items_of: Mapping[str, Sequence[str]]) -> str:
    return f"{len(items_of)} kind{'s' if len(items_of) > 1 else ''}"


def _row(split: str, images_of: Mapping[str, int]) -> list[str]:
    images = sorted(images_of.values()) or [0]
    figures = (len(images_of), sum(images), images[0], median(images), images[-1])
    return [split, *(f"{figure:,.10g}" for figure in figures)]
