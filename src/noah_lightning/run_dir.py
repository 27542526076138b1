"""Run directories: each file that a run leaves behind, with its only writer and reader.

config.yaml                the resolved configuration; paths in it are absolute
config-until-step-N.yaml   the one before ``noah resume --force`` changed it
train.log                  the lines of the console
metrics.csv                losses, accuracies and learning rates
checkpoints/best.ckpt      the epoch with the highest validation accuracy
checkpoints/best_ema.ckpt  the same for the average of the weights
checkpoints/last.ckpt      the latest state; a link to step-<steps>.ckpt until the run has finished
predictions.npz            what the best epoch predicts for every validation image
nonfinite.json             images of the batch whose loss was not finite
results.json               written when training has finished
mistake.txt                the error that ended the first attempt of a sweep's job

Every checkpoint holds the model's weights as ``model.*``, and their average as ``ema.module.*``. A run directory may
be untrusted: nothing in it is executed or fetched, and each kind of damage is one line. Torch is not needed.
"""

import csv
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noah_lightning.atomic_io import write_whole
from noah_lightning.config import recorded
from noah_lightning.config.plain_yaml import flat
from noah_lightning.config.schema import RunConfig
from noah_lightning.errors import ConfigError, RunFailed, one_line

if TYPE_CHECKING:
    import numpy as np  # takes a tenth of a second, which composing a configuration need not wait for

try:
    import fcntl
except ImportError:  # Windows has no such lock: a second process is not refused there
    fcntl = None  # type: ignore[assignment]

CONFIG, LOG, METRICS, RESULTS = "config.yaml", "train.log", "metrics.csv", "results.json"
PREDICTIONS, CHECKPOINTS, NONFINITE = "predictions.npz", "checkpoints", "nonfinite.json"
SWEEP = "sweep.json"  # in the folder of a sweep
ASIDE = ".unfinished"  # there too: attempts that were set aside
DEPTH = 3  # runs/DATE/TIME_sweep/NUMBER lies three below runs


@dataclass(frozen=True)
class Results:
    """Results of a finished run; accuracies are counts, so that nothing is lost in rounding.

    Those that begin with ``ema`` are of the average of the weights, and None without one.
    """

    parameters: int
    epochs: int
    best_epoch: int  # counted from 1
    correct: int
    correct_top5: int
    images: int
    train_seconds: float
    images_per_second: float  # while training
    peak_memory: int | None = None  # bytes, of the first GPU
    ema_best_epoch: int | None = None
    ema_correct: int | None = None
    ema_correct_top5: int | None = None

    @property
    def top1(self) -> float:
        """Percent."""
        return 100 * self.correct / self.images


@dataclass(frozen=True)
class Predictions:
    """Predictions of the best epoch, over the validation images in their order."""

    labels: "np.ndarray"  # int (images,)
    guesses: "np.ndarray"  # int (images,)
    class_names: list[str]

    @property
    def right(self) -> "np.ndarray":
        """bool (images,)."""
        right: np.ndarray = self.labels == self.guesses
        return right


@dataclass(frozen=True)
class RunDir:
    """The directory of one run; ``settings`` and ``outcome`` are read once, and all else at each call."""

    path: Path

    def claim(self, config: RunConfig) -> None:
        """Start a run here by writing its configuration.

        Raises:
            ConfigError: the directory holds a run already, or cannot be written.
        """
        with self._writable():
            if (self.path / CONFIG).exists():
                raise ConfigError(f"{self.path} holds a run already; give another hydra.run.dir=…")
            (self.path / CONFIG).write_text(recorded.as_yaml(config))

    def replace_config(self, config: RunConfig, steps: int) -> None:
        """Change the settings of the run; a file keeps those up to ``steps``. Raises ConfigError as :meth:`claim`."""
        path, new = self.path / CONFIG, recorded.as_yaml(config).encode()
        before = path.read_bytes()
        with self._writable():
            if before != new:
                write_whole(self.path / f"config-until-step-{steps:08}.yaml", lambda file: file.write(before))
                write_whole(path, lambda file: file.write(new))

    def config(self, overrides: Sequence[str] | None = None) -> RunConfig:
        """The recorded configuration; to rebuild the run from it, give the ``key=value`` pairs to set, if only ().

        Raises:
            ConfigError: there is no run, its file is not ours, the pairs do not fit, or the model to rebuild has to
                be fetched from elsewhere and they do not name it.
        """
        path = self._config_file()
        return recorded.parse_recorded(path) if overrides is None else recorded.parse_with(path, overrides)

    def config_to_resume(self, overrides: Sequence[str], force: bool = False) -> RunConfig:
        """The configuration to resume an unfinished run with; with ``force`` its batch may be divided otherwise.

        Raises:
            ConfigError: as :meth:`config`, the run has finished, or the settings may not change so.
        """
        self.check_unfinished()
        config = recorded.parse_with(self._config_file(), overrides, split_again=force)
        self.check_same(config, force)
        return config

    def check_same(self, config: RunConfig, force: bool = False) -> None:
        """Raise ConfigError for settings other than the run's; with ``force`` its batch may be divided otherwise."""
        recorded.check_same(self._config_file(), config, force)

    def check_unfinished(self) -> None:
        """Raise ConfigError for a run that has finished: training it again would overwrite its results."""
        if (self.path / RESULTS).is_file():
            raise ConfigError(f"{self.path} has finished; noah evaluate {self.path} repeats its validation")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep the directory for this process. The system releases it when the process ends, however it ends.

        Raises:
            ConfigError: another process trains here, or the directory cannot be written.
        """
        with self._writable():
            handle = os.open(self.path / LOG, os.O_RDWR | os.O_CREAT, 0o644)  # any file would do
        try:
            if fcntl:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise ConfigError(f"{self.path} is in use: another process is training there") from None
        try:
            yield
        finally:
            os.close(handle)

    def write_results(self, results: Results) -> None:
        """Mark the run as finished.

        Raises:
            RunFailed: the file cannot be written.
        """
        path, text = self.path / RESULTS, json.dumps(asdict(results), indent=2) + "\n"
        try:
            write_whole(path, lambda file: file.write(text.encode()))
        except OSError as error:
            what = f"{path} cannot be written ({one_line(error)})"
            raise RunFailed(f"{what}; make room, then noah resume {self.path}") from error

    def results(self) -> Results:
        """Results of a finished run; entries of other versions are ignored.

        Raises:
            ConfigError: the run has not finished, or the file is damaged.
        """
        try:
            entries = json.loads((self.path / RESULTS).read_text())
            known = {field.name for field in fields(Results)} & entries.keys()
            results = Results(**{name: entries[name] for name in known})
            for name, value in vars(results).items():
                if value is not None and not (type(value) in (int, float) and math.isfinite(value)):
                    raise ValueError(f"{name}={value!r} is not a number")
            if not 0 <= results.correct <= results.images > 0:
                raise ValueError(f"{results.correct} of {results.images} images are not a share")
            return results
        except (OSError, OverflowError, RecursionError, TypeError, ValueError) as error:
            raise ConfigError(f"{self.path} does not hold a finished run: {one_line(error)}") from error

    def write_predictions(self, labels: "np.ndarray", guesses: "np.ndarray", class_names: Sequence[str]) -> None:
        """Keep the predictions of the best epoch so far; labels and guesses are int32 (images,).

        Raises:
            OSError: the file cannot be written.
        """
        import numpy as np

        path, names = self.path / PREDICTIONS, np.array(class_names)
        write_whole(path, lambda f: np.savez_compressed(f, labels=labels, guesses=guesses, class_names=names))

    def predictions(self) -> Predictions:
        """Predictions of a finished run for every validation image.

        Raises:
            ConfigError: there are none, or they are not those that the run's accuracy was counted from.
        """
        import numpy as np

        results, path = self.results(), self.path / PREDICTIONS
        try:
            with np.load(path, allow_pickle=False) as arrays:
                found = Predictions(
                    arrays["labels"], arrays["guesses"], [str(name) for name in arrays["class_names"]]
                )
            both = np.stack([found.labels, found.guesses])
            integers = both.ndim == 2 and both.dtype.kind in "iu"
            if not integers or both.min() < 0 or both.max() >= len(found.class_names):
                raise ValueError("labels and guesses must be numbers of classes")
        except Exception as error:  # numpy and zipfile raise a handful of unrelated types on damaged files
            raise ConfigError(f"{path} holds no predictions: {one_line(error)}") from error
        counted = (int(found.right.sum()), len(found.labels))
        if counted != (results.correct, results.images):
            raise ConfigError(f"{path} is not of the epoch in {RESULTS}: {counted[0]} of {counted[1]} right")
        return found

    def curve(self, column: str) -> dict[int, float]:
        """A column of metrics.csv by epoch, counted from 1; empty where there is none."""
        values: dict[int, float] = {}
        try:
            with (self.path / METRICS).open(newline="") as file:
                for row in csv.DictReader(file):
                    if row.get(column) and row.get("epoch"):
                        values[int(float(row["epoch"])) + 1] = float(row[column])
        except (OSError, OverflowError, ValueError, csv.Error):
            return {}
        return values

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """The recorded settings by their dotted names (``head.head_num``), of other versions too.

        Raises:
            ConfigError: there is no run, or its file is not ours.
        """
        path = self._config_file()
        settings = dict(flat(recorded.read_recorded(path)))
        for key, kind, name in (("seed", int, "an integer"), ("model.name", str, "text"), ("head.name", str, "text")):
            if not isinstance(settings.get(key), kind):
                wrong = f"{key}={settings[key]!r} is not {name}" if key in settings else f"{key} missing"
                raise ConfigError(f"{path} is not a run's configuration: {wrong}")
        return settings

    @property
    def seed(self) -> int:
        return int(self.settings["seed"])

    @cached_property
    def outcome(self) -> Results | None:
        """The results, or None for a run without any that can be read."""
        try:
            return self.results()
        except ConfigError:
            return None

    @property
    def reason(self) -> str:
        """Why the outcome is missing: the last error in the log; without one, the last line of the log."""
        if (self.path / RESULTS).exists():
            return f"its {RESULTS} cannot be read"
        try:
            lines = (self.path / LOG).read_text(errors="replace").splitlines()
        except OSError:
            return f"it has no {RESULTS} and no {LOG}"
        if errors := [line.partition("error: ")[2] for line in lines if " error: " in f" {line}"]:
            return errors[-1].strip()
        last = next((line.strip() for line in reversed(lines) if line.strip()), "nothing")
        return f"no error in its log, it may still be training; last line: {last}"

    def _config_file(self) -> Path:
        """config.yaml; raises ConfigError where there is none."""
        if (self.path / CONFIG).is_file():
            return self.path / CONFIG
        inside = sorted(str(config.parent) for config in self.path.glob(f"*/{CONFIG}"))
        advice = f"; there are runs inside: {', '.join(inside)}" if inside else ""
        if (self.path / SWEEP).is_file():
            advice += "; a sweep resumes when its command is given again with sweep.resume=true"
        raise ConfigError(f"{self.path} is not a run directory: it has no {CONFIG}{advice}")

    @contextmanager
    def _writable(self) -> Iterator[None]:
        """Make the directory; what cannot be written in it becomes a ConfigError."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            yield
        except OSError as error:
            what = f"{self.path} cannot be written ({one_line(error)})"
            raise ConfigError(f"{what}; give another hydra.run.dir=…") from error


def find_runs(folders: Sequence[Path]) -> list[RunDir]:
    """Every run in ``folders``, each once; a folder is a run directory, or holds runs at most three levels down.

    Raises:
        ConfigError: a folder is missing, unreadable or without a run, or a named run has a configuration that is not
            ours.
    """
    found: dict[Path, RunDir] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"{folder} is not a folder")
        runs = [RunDir(folder)] if (folder / CONFIG).is_file() else list(_inside(folder, DEPTH))
        if not runs:
            raise ConfigError(f"{folder} does not hold a run: no {CONFIG} of one in it, nor {DEPTH} levels below")
        for run in runs:
            _ = run.settings  # raises where it is not a run
            found.setdefault(run.path.resolve(), run)
    return list(found.values())


def _inside(folder: Path, depth: int) -> Iterator[RunDir]:
    """Runs below ``folder``; other programs' folders, and what lies inside a run (a logger's own files), are not."""
    if depth == 0:
        return
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise ConfigError(f"{folder} cannot be read: {one_line(error)}") from error
    for path in paths:
        if path.name.startswith(".") or not path.is_dir():
            continue
        if (path / CONFIG).is_file():
            run = RunDir(path)
            try:
                _ = run.settings
            except ConfigError:  # some other program's config.yaml
                continue
            yield run
        else:
            yield from _inside(path, depth - 1)
