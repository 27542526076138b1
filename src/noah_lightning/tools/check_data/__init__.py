"""``noah check-data``: all that is wrong with a folder tree of images, told before a training meets it.

Every file is read and decoded as training does it, by as many processes as there are cores.
"""

import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from noah_lightning.data.index import Names
from noah_lightning.tools.check_data.processes import Chunk, Seen, look_at_all
from noah_lightning.tools.check_data.progress import show_progress
from noah_lightning.tools.check_data.report import Findings, Report
from noah_lightning.tools.check_data.tree import (
    ClassFolder,
    compare_splits,
    compare_with_imagenet,
    count,
    find_copies,
    find_equal_classes,
    is_imagenet,
    list_tree,
)

__all__ = ["Report", "check_data"]

CHUNK = 64  # images that a process looks at before it is heard of


def check_data(root: Path) -> Report:
    """Looks at ``root/train/<class>/`` and ``root/val/<class>/``; progress goes to standard error.

    Raises:
        DataError: no such folder, or neither split in it.
        KeyboardInterrupt: after a line that says how far it was.
    """
    start = time.monotonic()
    root = root.expanduser()
    findings = Findings()
    classes = list_tree(root, findings)
    counts = count(classes)
    compare_splits(counts, findings)
    imagenet = is_imagenet(counts)
    if imagenet:
        compare_with_imagenet(counts, findings)
    digests, processes = _look(root, classes, findings)
    find_equal_classes(classes, digests, findings)
    find_copies(classes, digests, findings, imagenet)
    return Report(root, counts, imagenet, findings, time.monotonic() - start, processes)


def _look(root: Path, classes: Sequence[ClassFolder], findings: Findings) -> tuple[NDArray[np.uint64], Counter[int]]:
    """Digests of all images, and how many each process has looked at."""
    digests = np.zeros(sum(len(folder.images) for folder in classes), np.uint64)
    processes: Counter[int] = Counter()
    try:
        with show_progress(len(digests)) as tell, closing(look_at_all(str(root), _chunks(classes))) as all_seen:
            for seen in all_seen:
                start = seen.chunk.start
                digests[start : start + len(seen.looks)] = [look.digest for look in seen.looks]
                _note(seen, findings)
                processes[seen.process] += len(seen.looks)
                tell(processes.total())
    except KeyboardInterrupt:
        print(f"noah: interrupted after {processes.total():,} of {len(digests):,} images", file=sys.stderr)
        raise
    return digests, processes


def _note(seen: Seen, findings: Findings) -> None:
    for path, look in zip(seen.chunk.paths, seen.looks, strict=True):
        for kind, detail in look.remarks:
            findings.add(kind, f"{path} ({detail})" if detail else path)


def _chunks(classes: Sequence[ClassFolder]) -> Iterator[Chunk]:
    start = 0
    for folder in classes:
        for first in range(0, len(folder.images), CHUNK):
            yield Chunk(start + first, _paths(folder.images, first, CHUNK))
        start += len(folder.images)


def _paths(names: Names, first: int, number: int) -> list[str]:
    return [names[i] for i in range(first, min(first + number, len(names)))]
