"""Run directories: the files of a run, each with its only writer and reader.

config.yaml                the resolved configuration; paths in it are absolute
config-until-step-N.yaml   the configuration before ``noah resume --force`` changed it
train.log                  the console output
metrics.csv                losses, accuracies, learning rates and curves of the attention
checkpoints/best.ckpt      the epoch with the highest validation accuracy, or mean average precision
checkpoints/best_ema.ckpt  the same for the average of the weights
checkpoints/last.ckpt      the latest state; a link to step-<steps>.ckpt until the run has finished
predictions.npz            predictions of the best epoch for every validation image
nonfinite.json             images of the batch whose loss was not finite
results.json               written when training has finished
mistake.txt                user error that ended the first attempt of a job of a sweep

Every checkpoint holds the model's weights as ``model.*``, and their average as ``ema.module.*``. A run directory may
be untrusted: nothing in it is executed or downloaded, and damage is reported in one line. Torch is not imported.
"""

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noah_lightning.atomic_io import write_whole
from noah_lightning.config import recorded
from noah_lightning.config.results import Results
from noah_lightning.config.schema import RunConfig
from noah_lightning.errors import ConfigError, RunFailed, one_line, shell_word

if TYPE_CHECKING:
    import numpy as np  # takes a tenth of a second to import

try:
    import fcntl
except ImportError:  # Windows has no such lock; a second process is not rejected there
    fcntl = None  # type: ignore[assignment]

CONFIG, LOG, METRICS, RESULTS = "config.yaml", "train.log", "metrics.csv", "results.json"
PREDICTIONS, CHECKPOINTS, NONFINITE = "predictions.npz", "checkpoints", "nonfinite.json"
SWEEP = "sweep.json"  # in the folder of a sweep
ASIDE = ".unfinished"  # there too: unfinished attempts that could not be resumed
DEPTH = 3  # runs/DATE/TIME_sweep/NUMBER lies three below runs


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
    """The directory of one run; ``settings`` and ``outcome`` are cached, and all else is read at each call."""

    path: Path

    def claim(self, config: RunConfig) -> None:
        """Start a run by writing its configuration; raises ConfigError if there is a run already, or it fails."""
        with self._writable():
            if (self.path / CONFIG).exists():
                raise ConfigError(f"{self.path} already contains a run; choose another hydra.run.dir=…")
            (self.path / CONFIG).write_text(recorded.as_yaml(config), encoding="utf-8")

    def replace_config(self, config: RunConfig, steps: int) -> None:
        """Change the settings of the run and keep the old ones, valid up to ``steps``, in a file."""
        path, new = self.path / CONFIG, recorded.as_yaml(config).encode()
        before = path.read_bytes()
        with self._writable():
            if before != new:
                write_whole(self.path / f"config-until-step-{steps:08}.yaml", lambda file: file.write(before))
                write_whole(path, lambda file: file.write(new))

    def config(self, overrides: Sequence[str] | None = None) -> RunConfig:
        """The recorded configuration, or if ``overrides`` are given, even (), that to rebuild the run with.

        Raises:
            ConfigError: there is no run, its configuration or an override is invalid, or with ``overrides``: they do
                not name a plug-in or a downloaded model of the run.
        """
        path = self._config_file()
        return recorded.parse_recorded(path) if overrides is None else recorded.parse_with(path, overrides)

    def config_to_resume(self, overrides: Sequence[str], force: bool = False) -> RunConfig:
        """The configuration to resume an unfinished run; with ``force`` its batch may be divided differently.

        Raises:
            ConfigError: as :meth:`config`, the run has finished, or an override changes a fixed setting.
        """
        self.check_unfinished()
        config = recorded.parse_with(self._config_file(), overrides, split_again=force)
        self.check_same(config, force)
        return config

    def check_same(self, config: RunConfig, force: bool = False) -> None:
        """Raise ConfigError for changed settings; with ``force`` the batch may be divided differently."""
        recorded.check_same(self._config_file(), config, force)

    def check_unfinished(self) -> None:
        """Raise ConfigError if the run has finished, because training would overwrite its results."""
        if (self.path / RESULTS).is_file():
            raise ConfigError(
                f"{self.path} has finished; noah evaluate {shell_word(self.path)} repeats its validation"
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the directory; the system releases the lock when the process ends in any way.

        Raises:
            ConfigError: another process is training here, or the directory cannot be written.
        """
        with self._writable():
            handle = os.open(self.path / LOG, os.O_RDWR | os.O_CREAT, 0o644)  # any file will do
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
        """Mark the run as finished; raises RunFailed if the file cannot be written."""
        path, text = self.path / RESULTS, results.text()
        try:
            write_whole(path, lambda file: file.write(text.encode()))
        except OSError as error:
            what = f"{path} cannot be written ({one_line(error)})"
            raise RunFailed(f"{what}; free some space, then noah resume {shell_word(self.path)}") from error

    def results(self) -> Results:
        """Results of a finished run; entries of other versions are ignored.

        Raises:
            ConfigError: the run has not finished, or the file is damaged.
        """
        try:
            return Results.model_validate_json((self.path / RESULTS).read_bytes())
        except (OSError, ValueError) as error:
            raise ConfigError(f"{self.path} does not contain a finished run: {one_line(error)}") from error

    def write_predictions(self, class_names: Sequence[str], **arrays: Any) -> None:
        """Save predictions; raises OSError if the file cannot be written.

        Args:
            class_names: in label order.
            arrays: labels and guesses, int32 (images,); of a multi-label run labels and logits, (images, K).
        """
        import numpy as np

        path, names = self.path / PREDICTIONS, np.array(class_names)
        write_whole(path, lambda file: np.savez_compressed(file, **arrays, class_names=names))

    def predictions(self) -> Predictions:
        """Predictions of a finished run for every validation image.

        Raises:
            ConfigError: there are none, they do not match the accuracy of the run, or the run is multi-label.
        """
        import numpy as np

        results, path = self.results(), self.path / PREDICTIONS
        if results.multilabel:
            raise ConfigError("McNemar's test counts images that are right, which mean average precision does not")
        try:
            with np.load(path, allow_pickle=False) as arrays:
                found = Predictions(
                    arrays["labels"], arrays["guesses"], [str(name) for name in arrays["class_names"]]
                )
            both = np.stack([found.labels, found.guesses])
            integers = both.ndim == 2 and both.dtype.kind in "iu"
            if not integers or both.min() < 0 or both.max() >= len(found.class_names):
                raise ValueError("labels and guesses must be numbers of classes")
        except Exception as error:  # numpy and zipfile raise several unrelated types for damaged files
            raise ConfigError(f"{path} does not contain predictions: {one_line(error)}") from error
        counted = (int(found.right.sum()), len(found.labels))
        if counted != (results.correct, results.images):
            raise ConfigError(f"{path} is not of the epoch in {RESULTS}: {counted[0]} of {counted[1]} right")
        return found

    def curve(self, column: str) -> dict[int, float]:
        """A column of metrics.csv by epoch, counted from 1; empty if it cannot be read."""
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
        """Recorded settings by dotted name (``head.head_num``), also of other versions.

        Settings that the version which recorded the run did not have yet have their defaults.

        Raises:
            ConfigError: there is no run, or its configuration is invalid.
        """
        path = self._config_file()
        settings = recorded.flat(recorded.with_defaults(recorded.read_recorded(path)))
        for key, kind in (("seed", int), ("model.name", str), ("head.name", str)):
            if not isinstance(settings.get(key), kind):
                name = "an integer" if kind is int else "a string"
                wrong = f"{key}={settings[key]!r} is not {name}" if key in settings else f"{key} missing"
                raise ConfigError(f"{path} is not a run's configuration: {wrong}")
        return settings

    @property
    def seed(self) -> int:
        return int(self.settings["seed"])

    @cached_property
    def outcome(self) -> Results | None:
        """The results, or None if there are none that can be read."""
        try:
            return self.results()
        except ConfigError:
            return None

    @property
    def reason(self) -> str:
        """Why the results are missing: the last error in the log, or else its last line."""
        if (self.path / RESULTS).exists():
            return f"its {RESULTS} cannot be read"
        try:
            lines = (self.path / LOG).read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return f"it has no {RESULTS} and no {LOG}"
        if errors := [line.partition("error: ")[2] for line in lines if " error: " in f" {line}"]:
            return errors[-1].strip()
        last = next((line.strip() for line in reversed(lines) if line.strip()), "nothing")
        return f"no error in its log, it may still be training; last line: {last}"

    def _config_file(self) -> Path:
        """Path of config.yaml; raises ConfigError if it does not exist."""
        if (self.path / CONFIG).is_file():
            return self.path / CONFIG
        inside = sorted(str(config.parent) for config in self.path.glob(f"*/{CONFIG}"))
        advice = f"; there are runs inside: {', '.join(inside)}" if inside else ""
        if (self.path / SWEEP).is_file():
            advice += "; to resume a sweep, repeat its command with sweep.resume=true"
        raise ConfigError(f"{self.path} is not a run directory: it has no {CONFIG}{advice}")

    @contextmanager
    def _writable(self) -> Iterator[None]:
        """Make the directory, and turn errors of writing into ConfigError."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            yield
        except OSError as error:
            what = f"{self.path} cannot be written ({one_line(error)})"
            raise ConfigError(f"{what}; choose another hydra.run.dir=…") from error


def find_runs(folders: Sequence[Path]) -> list[RunDir]:
    """Every run in ``folders``, each once; a folder is a run directory, or contains runs at most three levels down.

    Raises:
        ConfigError: a folder is missing, unreadable or without runs, or a named run has an invalid configuration.
    """
    found: dict[Path, RunDir] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"{folder} is not a folder")
        runs = [RunDir(folder)] if (folder / CONFIG).is_file() else list(_inside(folder, DEPTH))
        if not runs:
            raise ConfigError(
                f"{folder} does not contain a run: no {CONFIG} of a run in it or up to {DEPTH} levels below"
            )
        for run in runs:
            _ = run.settings  # raises if it is not a run
            found.setdefault(run.path.resolve(), run)
    return list(found.values())


def _inside(folder: Path, depth: int) -> Iterator[RunDir]:
    """Runs below ``folder``; folders inside a run, such as those of loggers, are not searched."""
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
            except ConfigError:  # config.yaml of another program
                continue
            yield run
        else:
            yield from _inside(path, depth - 1)
