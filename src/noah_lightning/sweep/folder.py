"""Folder of a sweep: sweep.json with its command, and a run directory for each job, named by its number.

A search also has trials.log, Optuna's journal. Whether a job has finished only depends on its run directory.
"""

import json
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from noah_lightning.distributed.signals import Stopped
from noah_lightning.errors import ConfigError, RunFailed, one_line, printable, shell_word
from noah_lightning.run_dir import SWEEP

TRIALS = "trials.log"


def begin(path: Path, command: Sequence[str]) -> None:
    """Create the folder of a new sweep; raises ConfigError if it already contains one or cannot be written."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with (path / SWEEP).open("x") as file:
            json.dump({"command": list(command)}, file, indent=2)
    except OSError as error:
        if (path / SWEEP).exists():
            raise ConfigError(f"{path} already contains a sweep; sweep.resume=true resumes it") from None
        raise ConfigError(f"{path} cannot be written ({one_line(error)}); choose another sweep.dir=…") from error


def mark(path: Path) -> None:
    """Mark a folder created by another sweeper as that of a sweep."""
    with suppress(FileExistsError), (path / SWEEP).open("x") as file:
        json.dump({"command": None}, file)


def find(path: Path | None, command: list[str], search: bool) -> Path:
    """The folder of the latest sweep or search with this command, or ``path``; raises ConfigError for another one."""
    for candidate in [path] if path else sorted(Path("runs").glob("*/*_sweep"), reverse=True):
        if _command(candidate) == command and (candidate / TRIALS).exists() == search:
            return candidate
    if path and (started := _command(path)):
        if started != command:
            raise ConfigError(f"{path} was started with: {shlex.join(started)}; repeat that command")
        kind = "not a search: remove sweep.trials" if search else "a search: add sweep.trials=N"
        raise ConfigError(f"{path} is {kind}")
    what, where = "search" if search else "sweep", path or "runs/"
    raise ConfigError(f"found no {what} with this command in {where}; remove sweep.resume to start one")


def _command(folder: Path) -> list[str] | None:
    try:
        command: list[str] = json.loads((folder / SWEEP).read_text())["command"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return command


def say(line: str, file: TextIO | None = None) -> None:
    """Print one line and flush."""
    print(printable(line), file=file or sys.stdout, flush=True)


class Report:
    """Prints and counts the results of the jobs of a sweep.

    Attributes:
        folder: folder of the sweep.
        total: number of jobs.
    """

    def __init__(self, folder: Path, total: int) -> None:
        self.folder, self.total = folder, total
        self._before = self._finished = 0
        self._skipped: list[str] = []
        self._failed: list[str] = []

    def finished_before(self, numbers: list[int]) -> None:
        self._before = len(numbers)
        if numbers:
            say(f"finished already: {_ranges(numbers)}")

    def finished(self, job: object, what: str) -> None:
        self._finished += 1
        say(f"finished {job}: {what}")

    def skipped(self, job: object, reason: str) -> None:
        """A job whose head does not fit."""
        self._skipped.append(f"{job}: {reason}")
        say(f"skipped  {self._skipped[-1]}")

    def failed(self, job: object, error: BaseException) -> None:
        reason = f"stopped by {error}" if isinstance(error, Stopped) else str(error)
        self._failed.append(f"failed   {job}: {reason}")
        say(self._failed[-1], sys.stderr)

    def conclude(self, best: str) -> None:
        """Print the summary of the sweep, with its ``best`` job unless that is "".

        Raises:
            ConfigError: every job was skipped.
            RunFailed: jobs failed.
        """
        skipped, failed = len(self._skipped), len(self._failed)
        if skipped == self.total:
            raise ConfigError(f"no job of the sweep is possible: {self._skipped[0].partition('  ')[2]}")
        parts = ((self._before, "of them before"), (skipped, "impossible"), (failed, "failed"))
        counts = "".join(f", {number} {what}" for number, what in parts if number)
        finished = self._before + self._finished
        say("")
        say(f"sweep    {finished} of {self.total} jobs finished{counts}; noah compare {shell_word(self.folder)}")
        if best:
            say(f"best     {best}")
        if failed:
            for line in sorted(self._failed, key=lambda line: int(line.split()[1].rstrip(":"))):
                say(line, sys.stderr)
            raise RunFailed(f"{failed} of {self.total} jobs failed; sweep.resume=true resumes them")


def _ranges(numbers: Sequence[int]) -> str:
    """``0-3, 5`` for 0, 1, 2, 3, 5."""
    ends = [i for i in range(1, len(numbers)) if numbers[i] != numbers[i - 1] + 1]
    runs = [numbers[first:last] for first, last in zip([0, *ends], [*ends, len(numbers)], strict=True)]
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
