"""The folder of a sweep: sweep.json with its command, and a run directory for each job, named by its number; of a
search also trials.jsonl.

What a job came to is told by its run directory alone: it has finished if results.json is there. A run that cannot be
gone on with is set aside in ``.unfinished/`` before the job begins anew; nothing is lost.
"""

import json
from collections.abc import Sequence
from datetime import datetime
from itertools import count
from pathlib import Path

from noah_lightning.errors import ConfigError, one_line
from noah_lightning.run_dir import ASIDE, RESULTS, SWEEP

TRIALS = "trials.jsonl"


def begin(folder: str | None, command: Sequence[str], search: bool = False) -> Path:
    """The new folder of a sweep; that of a search has a list of its trials.

    Raises:
        ConfigError: it holds a sweep already, or cannot be written.
    """
    path = Path(folder) if folder else Path("runs") / f"{datetime.now():%Y-%m-%d/%H-%M-%S}_sweep"
    try:
        path.mkdir(parents=True, exist_ok=True)
        with (path / SWEEP).open("x") as file:
            json.dump({"command": list(command)}, file, indent=2)
        if search:
            (path / TRIALS).touch()
    except OSError as error:
        if (path / SWEEP).exists():
            raise ConfigError(f"{path} holds a sweep already; sweep.resume=true goes on with it") from None
        raise ConfigError(f"{path} cannot be written ({one_line(error)}); give another sweep.dir=…") from error
    return path


def find(folder: str | None, command: Sequence[str], search: bool = False) -> Path:
    """The folder of the latest sweep, or search, of this very command.

    Raises:
        ConfigError: there is none.
    """
    candidates = [Path(folder)] if folder else sorted(Path("runs").glob("*/*_sweep"), reverse=True)
    for path in candidates:
        if _command(path) == list(command) and (path / TRIALS).exists() == search:
            return path
    if folder and (begun := _command(Path(folder))):
        if begun != list(command):
            raise ConfigError(f"{folder} was begun with: {' '.join(begun)}; give the same words in the same order")
        kind = "no search: leave sweep.trials out" if search else "a search: give sweep.trials=N too"
        raise ConfigError(f"{folder} is {kind}")
    what = "search" if search else "sweep"
    raise ConfigError(
        f"there is no {what} of this very command in {folder or 'runs/'}; leave sweep.resume out to begin one"
    )


def has_finished(run_dir: Path) -> bool:
    return (run_dir / RESULTS).is_file()


def set_aside(run_dir: Path) -> Path:
    """Make room for another attempt; returns where this one is kept.

    Raises:
        ConfigError: the sweep's folder cannot be written.
    """
    aside = run_dir.parent / ASIDE
    try:
        aside.mkdir(exist_ok=True)
        names = (aside / f"{run_dir.name}-{attempt}" for attempt in count(1))
        return run_dir.rename(next(name for name in names if not name.exists()))
    except OSError as error:
        raise ConfigError(f"{aside} cannot be written ({one_line(error)})") from error


def _command(folder: Path) -> list[str] | None:
    try:
        command: list[str] = json.loads((folder / SWEEP).read_text())["command"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return command
