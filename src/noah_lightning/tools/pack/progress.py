"""How far packing has come: a bar on a terminal, a line every so often elsewhere."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from noah_lightning.loggers.console import duration, log, on_terminal

EVERY = 10.0  # seconds between two lines
Advance = Callable[[], None]  # is told of each image that is packed; any thread may call it


@contextmanager
def progress(images: int) -> Iterator[Advance]:
    """Shows how many of ``images`` are packed."""
    if not on_terminal():
        yield _Lines(images).advance
        return
    with Progress(TextColumn("packing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()) as bar:
        task = bar.add_task("packing", total=images)
        yield lambda: bar.advance(task)


class _Lines:
    """A log line every ``EVERY`` seconds."""

    def __init__(self, images: int) -> None:
        self.images, self.done = images, 0
        self.start = self.told = time.monotonic()
        self.lock = threading.Lock()

    def advance(self) -> None:
        with self.lock:
            self.done += 1
            now = time.monotonic()
            if now - self.told < EVERY:
                return
            self.told = now
            rate = self.done / (now - self.start)
            left = duration((self.images - self.done) / rate)
            log.info(
                "packed %s of %s images  %.0f images/s  %s left", f"{self.done:,}", f"{self.images:,}", rate, left
            )
