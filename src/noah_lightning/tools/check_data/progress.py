"""How far the check is, on standard error: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

EVERY = 30.0  # s between two lines


@contextmanager
def show_progress(total: int) -> Iterator[Callable[[int], None]]:
    """Gives a function to be called with the number of images looked at so far."""
    if not sys.stderr.isatty():
        yield _lines(total)
        return
    columns = (TextColumn("looking at images"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda done: bar.update(task, completed=done)


def _lines(total: int) -> Callable[[int], None]:
    start = last = time.monotonic()

    def tell(done: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= EVERY:
            last = now
            left = (now - start) / done * (total - done)
            print(f"{done:,} of {total:,} images, {left / 60:.0f} min left", file=sys.stderr, flush=True)

    return tell
