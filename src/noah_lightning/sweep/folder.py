"""The folder of a sweep: sweep.json with its command, and a run directory for each job, named by its number.

A search also has trials.log there, Optuna's journal. Whether a job has finished is known by its run directory alone.
"""

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from noah_lightning.errors import ConfigError, one_line
from noah_lightning.run_dir import SWEEP

TRIALS = "trials.log"


def begin(path: Path, command: Sequence[str]) -> None:
    """Claim the folder of a new sweep.

    Raises:
        ConfigError: it holds a sweep already, or cannot be written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with (path / SWEEP).open("x") as file:
            json.dump({"command": list(command)}, file, indent=2)
    except OSError as error:
        if (path / SWEEP).exists():
            raise ConfigError(f"{path} holds a sweep already; sweep.resume=true resumes it") from None
        raise ConfigError(f"{path} cannot be written ({one_line(error)}); give another sweep.dir=…") from error


def mark(path: Path) -> None:
    """Mark the folder as that of a sweep, where another sweeper has begun it."""
    with suppress(FileExistsError), (path / SWEEP).open("x") as file:
        json.dump({"command": None}, file)


def find(path: Path | None, command: Sequence[str], search: bool) -> Path:
    """The folder of the latest sweep, or search, of this very command; ``path``: there or nowhere.

    Raises:
        ConfigError: there is none.
    """
    what = "search" if search else "sweep"
    for candidate in [path] if path else sorted(Path("runs").glob("*/*_sweep"), reverse=True):
        if _command(candidate) == list(command) and (candidate / TRIALS).exists() == search:
            return candidate
    if path and (begun := _command(path)):
        if begun != list(command):
            raise ConfigError(f"{path} was begun with: {' '.join(begun)}; give the same words in the same order")
        kind = "not a search: leave sweep.trials out" if search else "a search: give sweep.trials=N too"
        raise ConfigError(f"{path} is {kind}")
    raise ConfigError(
        f"there is no {what} of this very command in {path or 'runs/'}; leave sweep.resume out to begin one"
    )


def _command(folder: Path) -> list[str] | None:
    try:
        command: list[str] = json.loads((folder / SWEEP).read_text())["command"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return command
