"""The run directory: everything that can be known of a run, in plain files.

config.yaml                the resolved configuration
config-until-step-N.yaml   the one before ``noah resume --force`` changed it, if that was done
train.log                  what the console showed
metrics.csv                losses, accuracies and learning rates
checkpoints/best.ckpt      the epoch with the highest validation accuracy
checkpoints/best_ema.ckpt  likewise of the average of the weights, where there is one
checkpoints/last.ckpt      the latest state; until the run has finished it leads to step-<steps>.ckpt
predictions.npz            what the best epoch said of every validation image
nonfinite.json             images of the batch at which a loss was not finite, if one was
results.json               written when training has finished
mistake.txt                the mistake that a job of a sweep ended in at its first go; resumed, it begins anew

Every checkpoint holds the model's weights as ``model.*``, and their average, where there is one, as ``ema.module.*``.
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from noah_lightning.atomic_io import write_whole
from noah_lightning.config.compose import override
from noah_lightning.config.parsing import parse_config
from noah_lightning.config.plain_yaml import flat, is_number, pairs, read_yaml
from noah_lightning.config.processes import batch_per_process
from noah_lightning.config.schema import RunConfig
from noah_lightning.errors import ConfigError, RunFailed, one_line


@dataclass(frozen=True)
class Results:
    """What a finished run came to; accuracies are counts, so that nothing is lost in rounding.

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


def write_config(run_dir: Path, config: RunConfig) -> None:
    """Claim the run directory by writing its configuration.

    Raises:
        ConfigError: the directory holds a run already, or cannot be written.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        with (run_dir / CONFIG).open("x") as file:
            file.write(yaml.safe_dump(config.model_dump(), sort_keys=False))
    except FileExistsError:
        raise ConfigError(f"{run_dir} holds a run already; give another hydra.run.dir=…") from None
    except OSError as error:
        raise ConfigError(f"{run_dir} cannot be written ({one_line(error)}); give another hydra.run.dir=…") from error


def replace_config(run_dir: Path, config: RunConfig, steps: int) -> None:
    """Let a run have other settings from now on; those it had up to ``steps`` stay beside them.

    Raises:
        ConfigError: the directory cannot be written.
    """
    path, text = run_dir / CONFIG, yaml.safe_dump(config.model_dump(), sort_keys=False)
    try:
        before = path.read_bytes()
        if before != text.encode():
            write_whole(run_dir / f"config-until-step-{steps:08}.yaml", lambda file: file.write(before))
            write_whole(path, lambda file: file.write(text.encode()))
    except OSError as error:
        raise ConfigError(f"{run_dir} cannot be written ({one_line(error)}); make it writable") from error


def write_results(run_dir: Path, results: Results) -> None:
    """Say that the run has finished, and how.

    Raises:
        RunFailed: the file cannot be written.
    """
    text = json.dumps(asdict(results), indent=2) + "\n"
    try:
        write_whole(run_dir / RESULTS, lambda file: file.write(text.encode()))
    except OSError as error:
        raise RunFailed(
            f"{run_dir / RESULTS} cannot be written ({one_line(error)}); make room, then noah resume {run_dir}"
        ) from error


def read_results(run_dir: Path) -> Results:
    """Results of a finished run.

    Raises:
        ConfigError: the run has not finished.
    """
    try:
        results = Results(**json.loads((run_dir / RESULTS).read_text()))
        for name, value in vars(results).items():
            if not is_number(value) and value is not None:
                raise ValueError(f"{name}={value!r} is no number")
        return results
    except (OSError, RecursionError, TypeError, ValueError) as error:
        raise ConfigError(f"{run_dir} holds no finished run: {one_line(error)}") from error


CONFIG, LOG, METRICS, RESULTS = "config.yaml", "train.log", "metrics.csv", "results.json"
PREDICTIONS, CHECKPOINTS = "predictions.npz", "checkpoints"
NONFINITE = "nonfinite.json"
SWEEP = "sweep.json"  # in the folder of a sweep
ASIDE = ".unfinished"  # likewise: attempts that were set aside


try:
    import fcntl
except ImportError:  # Windows: nothing keeps the second one out there
    fcntl = None  # type: ignore[assignment]


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Keep the run directory for this process. The system lets go of it when the process ends, however it ends.

    Raises:
        ConfigError: another process is at it, or the directory cannot be written.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        handle = os.open(run_dir / LOG, os.O_RDWR | os.O_CREAT, 0o644)  # any file would do
    except OSError as error:
        raise ConfigError(f"{run_dir} cannot be written ({one_line(error)}); give another hydra.run.dir=…") from error
    try:
        if fcntl:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(f"{run_dir} is in use: another process is training there") from None
        yield
    finally:
        os.close(handle)


def check_unfinished(run_dir: Path) -> None:
    """Refuse to go on with a run that has finished: it would begin anew, over its results.

    Raises:
        ConfigError: it has.
    """
    if (run_dir / RESULTS).is_file():
        raise ConfigError(f"{run_dir} has finished; noah evaluate {run_dir} repeats its validation")


NEEDED = ("model", "head", "data", "recipe", "trainer")


def read_recorded(run_dir: Path) -> dict[str, Any]:
    """The settings in a run directory, as they stand there.

    Raises:
        ConfigError: a file that is not ours.
    """
    path = run_dir / CONFIG
    content = read_yaml(path)
    missing = set(NEEDED) - content.keys()
    if missing:
        raise ConfigError(f"{path} is no run's configuration: {', '.join(sorted(missing))} missing")
    for key, value in pairs(content):
        name = key.rpartition(".")[2]
        if name.startswith("_"):  # such as Hydra's _target_, which would name what to call
            raise ConfigError(f"{path} is no run's configuration: there is no setting {key!r}")
        if not key.isprintable() or (isinstance(value, str) and not value.isprintable()):  # a terminal obeys some
            raise ConfigError(f"{path} is no run's configuration: {key!r} has control characters")
        if "${" in key or (isinstance(value, str) and ("${" in value or value == "???")):
            # Ours are resolved; a stranger's could read the environment.
            raise ConfigError(f"{path} is no run's configuration: {key} refers to other settings by ${{…}}")
    return content


def read_config(run_dir: Path) -> RunConfig:
    """The configuration a run was started with: known settings, each in its range.

    Raises:
        ConfigError: no run there, or a file that is not ours.
    """
    if not (run_dir / CONFIG).is_file():
        inside = sorted(str(config.parent) for config in run_dir.glob(f"*/{CONFIG}"))
        advice = f"; there are runs inside: {', '.join(inside)}" if inside else ""
        if (run_dir / SWEEP).is_file():
            advice += "; a sweep goes on if its command is given again with sweep.resume=true"
        raise ConfigError(f"{run_dir} is no run directory: it has no {CONFIG}{advice}")
    content = read_recorded(run_dir)
    try:
        return parse_config(content)
    except ConfigError as error:
        raise ConfigError(f"{run_dir / CONFIG}: {error}") from None


def config_to_use(run_dir: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration to build a run from again, with ``key=value`` pairs set.

    Raises:
        ConfigError: as :func:`read_config`, pairs that do not fit, or a model that has to be fetched from elsewhere
            and is not named in ``overrides``.
    """
    recorded = read_config(run_dir)
    config = override(recorded, overrides)
    name = recorded.model.name
    if ":" in name and not any(pair.startswith("model.name=") for pair in overrides):
        raise ConfigError(
            f"{run_dir / CONFIG} asks for model.name={name}, which is no model of timm's own list but fetched from "
            f"elsewhere; if you trust it, add model.name={name}"
        )
    return config


def split_anew(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """``config`` with the recipe's batch shared out among the processes there are now.

    Raises:
        ConfigError: it cannot be shared out so, or ``overrides`` say how.
    """
    if any(pair.startswith("data.batch_size=") for pair in overrides):
        raise ConfigError("data.batch_size follows from recipe.batch_size and the processes; change these")
    return config.replace("data", batch_size=batch_per_process(config.recipe.batch_size, config.trainer))


# Settings that may differ from those the run was begun with: where things are, who loads them, what ends the run.
FREE = ("data.root", "data.num_workers", "data.max_unreadable", "trainer.nonfinite", "logger.mode")
# How the images of a step are shared out, which may differ by force.
SPLIT = (
    "recipe.batch_size",
    "data.batch_size",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.strategy",
    "trainer.accumulate_grad_batches",
)


def check_same(run_dir: Path, config: RunConfig, force: bool = False) -> None:
    """Refuse to go on with settings other than the run's own; with ``force`` the batch may be split otherwise.

    Raises:
        ConfigError: the settings differ, or there is no run.
    """
    free = (*FREE, *SPLIT) if force else FREE
    begun, now = (dict(flat(one.model_dump())) for one in (read_config(run_dir), config))
    for key in sorted(begun.keys() | now.keys()):
        if begun.get(key) != now.get(key) and key not in free:
            may = "by --force, which says what is not exact then" if key in SPLIT else f"only in {', '.join(FREE)}"
            raise ConfigError(
                f"{run_dir} was begun with {key}={begun.get(key)}, not {now.get(key)}; a run goes on with its own "
                f"settings, others are taken {may}"
            )
