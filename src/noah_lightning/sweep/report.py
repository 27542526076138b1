"""What became of the jobs of a sweep: said at once, and again at its end."""

import sys
from pathlib import Path
from typing import TextIO

from noah_lightning.distributed.signals import Stopped
from noah_lightning.errors import ConfigError, RunFailed


def say(line: str, file: TextIO | None = None) -> None:
    """Print at once, also where the output goes to a file."""
    print(line, file=file or sys.stdout, flush=True)


class Report:
    """Keeps count of the jobs, each under its name: number and settings.

    Attributes:
        folder: of the sweep.
        total: how many jobs there are.
    """

    def __init__(self, folder: Path, total: int) -> None:
        self.folder, self.total = folder, total
        self._before: list[int] = []
        self._finished = 0
        self._skipped: list[str] = []
        self._failed: list[str] = []

    def finished_before(self, numbers: list[int]) -> None:
        self._before = numbers
        if numbers:
            say(f"finished already: {', '.join(map(str, numbers))}")

    def finished(self, name: str, what: str) -> None:
        self._finished += 1
        say(f"finished {name}: {what}")

    def skipped(self, name: str, reason: str) -> None:
        """A job whose head does not fit."""
        self._skipped.append(f"{name}: {reason}")
        say(f"skipped  {self._skipped[-1]}")

    def failed(self, name: str, error: BaseException) -> None:
        reason = f"stopped by {error}" if isinstance(error, Stopped) else str(error)
        self._failed.append(f"{name}: {reason}")
        say(f"failed   {self._failed[-1]}", sys.stderr)

    def conclude(self, best: str) -> None:
        """Say what the sweep came to.

        Args:
            best: its best job, or "".

        Raises:
            ConfigError: every job was skipped.
            RunFailed: jobs failed.
        """
        if len(self._skipped) == self.total:
            raise ConfigError(f"no job of the sweep is possible: {self._skipped[0].partition('  ')[2]}")
        parts = [f"{self._finished + len(self._before)} of {self.total} jobs finished"]
        parts += [f"{len(self._before)} of them before"] if self._before else []
        parts += [f"{len(self._skipped)} impossible"] if self._skipped else []
        parts += [f"{len(self._failed)} failed"] if self._failed else []
        say(f"\nsweep    {', '.join(parts)}; noah compare {self.folder}")
        if best:
            say(f"best     {best}")
        if self._failed:
            for reason in sorted(self._failed, key=lambda line: int(line.split()[0])):
                say(f"failed   {reason}", sys.stderr)
            raise RunFailed(f"{len(self._failed)} of {self.total} jobs failed; sweep.resume=true resumes them")
