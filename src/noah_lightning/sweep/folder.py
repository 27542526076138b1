"""Folder of a sweep: sweep.json with its command, and a run directory for each job, named by its number.

A search also has trials.log, Optuna's journal. Whether a job has finished only depends on its run directory.
"""

import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from noah_lightning.distributed.signals import Stopped
from noah_lightning.errors import ConfigError, RunFailed, one_line
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


def find(path: Path | None, command: Sequence[str], search: bool) -> Path:
    """The folder of the latest sweep or search with this command, or ``path`` if given.

    Raises:
        ConfigError: there is none.
    """
    what = "search" if search else "sweep"
    for candidate in [path] if path else sorted(Path("runs").glob("*/*_sweep"), reverse=True):
        if _command(candidate) == list(command) and (candidate / TRIALS).exists() == search:
            return candidate
    if path and (started := _command(path)):
        if started != list(command):
            raise ConfigError(f"{path} was started with: {' '.join(started)}; repeat that command")
        kind = "not a search: remove sweep.trials" if search else "a search: add sweep.trials=N"
        raise ConfigError(f"{path} is {kind}")
    raise ConfigError(f"found no {what} with this command in {path or 'runs/'}; remove sweep.resume to start one")


def _command(folder: Path) -> list[str] | None:
    try:
        command: list[str] = json.loads((folder / SWEEP).read_text())["command"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return command


def say(line: str, file: TextIO | None = None) -> None:
    """Print and flush."""
    print(line, file=file or sys.stdout, flush=True)


class Report:
    """Prints and counts the results of the jobs, each under its name: number and settings.

    Attributes:
        folder: folder of the sweep.
        total: number of jobs.
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
        """Print the summary of the sweep, with its ``best`` job unless that is "".

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
