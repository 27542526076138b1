"""What can be wrong with a data set: the kinds, and how grave each of them is."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Literal

PROBLEM: Literal["problem"] = "problem"  # would end a training, or falsify its result
NOTE: Literal["note"] = "note"  # worth knowing

SMALLEST = 8  # pixels a side


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
