"""Progress on standard error: a bar on a terminal, otherwise a line every few seconds."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from noah_lightning.loggers.console import duration

EVERY = 10.0  # seconds between two lines


@contextmanager
def progress(work: str, total: int) -> Iterator[Callable[[], None]]:
    """Report how many of ``total`` images are done; ``work`` is the label, such as "packing".

    Yields:
        A function to call after each image, from any thread.
    """
    if not sys.stderr.isatty():
        yield _Lines(work, total).advance
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(work, total=total)
        yield lambda: bar.advance(task)


def speed(images: int, seconds: float, left: float) -> str:
    """``"812 images/s  1:15 left"``; ``left`` is the remaining work as a multiple of ``images``."""
    return f"{images / seconds:.0f} images/s  {duration(seconds * left)} left"


class _Lines:
    def __init__(self, work: str, total: int) -> None:
        self.work, self.total, self.done = work, total, 0
        self.start = self.reported = time.monotonic()
        self.lock = threading.Lock()

    def advance(self) -> None:
        with self.lock:
            self.done += 1
            now = time.monotonic()
            if now - self.reported >= EVERY:
                self.reported = now
                rate = speed(self.done, now - self.start, (self.total - self.done) / self.done)
                print(f"{self.work}: {self.done:,} of {self.total:,} images  {rate}", file=sys.stderr, flush=True)
