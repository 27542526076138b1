"""What a run left behind, read as plain files: nothing in it is executed, and torch is not needed."""

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from noah_lightning.config.plain_yaml import flat, is_number
from noah_lightning.errors import ConfigError, one_line
from noah_lightning.run_dir import CONFIG, LOG, METRICS, PREDICTIONS, RESULTS, read_recorded


@dataclass(frozen=True)
class Outcome:
    """What a finished run came to, at its best epoch."""

    parameters: int
    epochs: int
    best_epoch: int  # counted from 1
    correct: int
    images: int
    train_seconds: float
    images_per_second: float  # while training
    peak_memory: int | None = None  # bytes, of the first GPU

    @property
    def top1(self) -> float:
        """Percent."""
        return 100 * self.correct / self.images


@dataclass(frozen=True)
class Run:
    """A run directory; ``settings`` are its configuration with dotted names (``head.head_num``)."""

    path: Path
    settings: Mapping[str, Any]
    outcome: Outcome | None
    reason: str = ""  # why there is no outcome

    @property
    def seed(self) -> int:
        seed: int = self.settings["seed"]
        return seed


@dataclass(frozen=True)
class Predictions:
    """What the best epoch said, over the validation images in their order."""

    labels: np.ndarray  # int (images,)
    guesses: np.ndarray  # int (images,)
    class_names: list[str]

    @property
    def right(self) -> np.ndarray:
        """bool (images,)."""
        right: np.ndarray = self.labels == self.guesses
        return right


def read_run(path: Path) -> Run:
    """The run in directory ``path``, finished or not.

    Raises:
        ConfigError: its configuration is unreadable or no run's.
    """
    file = path / CONFIG
    content = read_recorded(path)
    if "seed" not in content:
        raise ConfigError(f"{file} is no run's configuration: seed missing")
    settings = dict(flat(content))
    if not {"model.name", "head.name"} <= set(settings):
        raise ConfigError(f"{file} is no run's configuration: model.name or head.name missing")
    if not isinstance(settings["seed"], int):
        raise ConfigError(f"{file} is no run's configuration: seed={settings['seed']!r} is no whole number")
    outcome = _outcome(path / RESULTS)
    return Run(path, settings, outcome, "" if outcome else _reason(path))


def _outcome(path: Path) -> Outcome | None:
    """Facts of other versions are passed over; a file that lacks one of ours is no result."""
    try:
        facts = json.loads(path.read_text())
        outcome = Outcome(**{field.name: facts[field.name] for field in fields(Outcome) if field.name in facts})
        known = [value for value in vars(outcome).values() if value is not None]
        sound = all(is_number(value) and math.isfinite(value) for value in known)
        return outcome if sound and 0 <= outcome.correct <= outcome.images > 0 else None
    except (OSError, OverflowError, RecursionError, TypeError, ValueError):
        return None


def _reason(path: Path) -> str:
    """The last error in the log; without one, how far the log came."""
    if (path / RESULTS).exists():
        return f"its {RESULTS} cannot be read"
    try:
        lines = (path / LOG).read_text(errors="replace").splitlines()
    except OSError:
        return f"it has no {RESULTS} and no {LOG}"
    errors = [line.partition("error: ")[2] for line in lines if " error: " in f" {line}"]
    if errors:
        return errors[-1].strip()
    last = next((line.strip() for line in reversed(lines) if line.strip()), "nothing")
    return f"no error in its log, it may still be training; last line: {last}"


def read_predictions(run: Run) -> Predictions:
    """What the best epoch of a finished run said of every validation image.

    Raises:
        ConfigError: there are none, or they are not those that the run's accuracy was counted from.
    """
    assert run.outcome is not None
    path = run.path / PREDICTIONS
    try:
        with np.load(path, allow_pickle=False) as arrays:
            said = Predictions(arrays["labels"], arrays["guesses"], [str(name) for name in arrays["class_names"]])
        if any(array.ndim != 1 or array.dtype.kind not in "iu" for array in (said.labels, said.guesses)):
            raise ValueError("labels and guesses must be lists of whole numbers")
        if said.labels.shape != said.guesses.shape or not _are_classes(said):
            raise ValueError("labels, guesses and classes do not go together")
    except Exception as error:  # numpy and zipfile raise a handful of unrelated types on broken files
        raise ConfigError(f"{path} holds no predictions: {one_line(error)}") from error
    counted = (int(said.right.sum()), len(said.labels))
    if counted != (run.outcome.correct, run.outcome.images):
        raise ConfigError(f"{path} is not of the epoch in {RESULTS}: {counted[0]} of {counted[1]} right")
    return said


def _are_classes(said: Predictions) -> bool:
    both = np.concatenate([said.labels, said.guesses])
    return bool((both >= 0).all() and (both < len(said.class_names)).all())


def read_curve(run: Run, column: str) -> dict[int, float]:
    """A column of metrics.csv by epoch, counted from 1; empty where there is none."""
    values: dict[int, float] = {}
    try:
        with (run.path / METRICS).open(newline="") as file:
            for row in csv.DictReader(file):
                if row.get(column) and row.get("epoch"):
                    values[int(float(row["epoch"])) + 1] = float(row[column])
    except (OSError, OverflowError, ValueError, csv.Error):
        return {}
    return values


DEPTH = 3  # runs/DATE/TIME_sweep/NUMBER lies three below runs


def find_runs(folders: Sequence[Path]) -> list[Run]:
    """Every run in ``folders``, each once; a folder is a run directory, or holds runs at most three levels down.

    Raises:
        ConfigError: no folder, one that is none, is unreadable or without a run, or a named run whose configuration
            is not ours.
    """
    if not folders:
        raise ConfigError("there is nothing to compare; name at least one run directory")
    found: dict[Path, Run] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"{folder} is no folder")
        runs = [read_run(folder)] if (folder / CONFIG).is_file() else list(_inside(folder, DEPTH))
        if not runs:
            raise ConfigError(f"{folder} holds no run: there is no run's {CONFIG} in it, nor {DEPTH} levels below")
        for run in runs:
            found.setdefault(run.path.resolve(), run)
    return list(found.values())


def _inside(folder: Path, depth: int) -> Iterator[Run]:
    """Runs below ``folder``; what lies inside a run (a logger's own files) is none, and strangers are passed over."""
    if depth == 0:
        return
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise ConfigError(f"{folder} cannot be looked through: {one_line(error)}") from error
    for path in paths:
        if path.name.startswith(".") or not path.is_dir():
            continue
        if (path / CONFIG).is_file():
            try:
                yield read_run(path)
            except ConfigError:  # some other program's config.yaml
                continue
        else:
            yield from _inside(path, depth - 1)
