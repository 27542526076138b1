"""Where the jobs of a sweep come from, and what came of them."""

import sys
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TextIO

from noah_lightning.sweep.plan import Job


class Source(ABC):
    """Gives the jobs one by one and is told how each ended. It is made before the sweep's folder: a mistake in the
    command leaves nothing behind.

    Attributes:
        total: jobs of the sweep.
        gpus: the most GPUs that one of them needs.
        finished: how many finished now.
        before: numbers of those that had finished before.
        skipped: those that cannot be, by number: settings and reason.
        failed: likewise: settings and the error's line.
    """

    def __init__(self, total: int, gpus: int) -> None:
        self.total, self.gpus = total, gpus
        self.finished = 0
        self.before: list[int] = []
        self.skipped: dict[int, str] = {}
        self.failed: dict[int, str] = {}

    @abstractmethod
    def open(self, folder: Path) -> None:
        """Look at what the sweep's folder holds already."""

    @abstractmethod
    def next(self) -> Job | None:
        """The next job to run; None: no more."""

    def tell(self, job: Job, error: str) -> None:
        """How a job ended: the error's line, or ""."""
        if error:
            self.failed[job.number] = f"{job}: {error}"
        else:
            self.finished += 1

    def skip(self, number: int, name: str, reason: str) -> None:
        """Say of a job that it cannot be."""
        self.skipped[number] = f"{name}: {reason}"
        say(f"skipped  {number}  {self.skipped[number]}")

    def best(self) -> str:
        """The best job and its settings in one line, if the sweep looked for it."""
        return ""


def say(line: str, file: TextIO | None = None) -> None:
    """Print at once, also where the output goes to a file."""
    print(line, file=file or sys.stdout, flush=True)
