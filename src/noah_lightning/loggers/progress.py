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
    if sys.stderr.isatty():
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(work, total=total)
            yield lambda: bar.advance(task)
        return
    start = reported = time.monotonic()
    done, lock = 0, threading.Lock()

    def advance() -> None:
        nonlocal done, reported
        with lock:
            done += 1
            now = time.monotonic()
            if now - reported >= EVERY:
                reported = now
                rate, left = done / (now - start), duration((now - start) * (total - done) / done)
                line = f"{work}: {done:,} of {total:,} images  {rate:.0f} images/s  {left} left"
                print(line, file=sys.stderr, flush=True)

    yield advance
