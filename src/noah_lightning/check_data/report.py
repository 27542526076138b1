"""What the check found, for people and for machines."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from noah_lightning.check_data.findings import KINDS, NOTE, PROBLEM, Findings, printable
from noah_lightning.check_data.listing import Counts
from noah_lightning.tables import Table

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
