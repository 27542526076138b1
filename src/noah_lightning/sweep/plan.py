"""What a sweep consists of: its jobs, and those that cannot be."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException
from omegaconf import OmegaConf

from noah_lightning.config.compose import compose_config, config_dir
from noah_lightning.config.plugins import load_plugins
from noah_lightning.config.schema import RunConfig
from noah_lightning.errors import ConfigError, HeadSettingError, did_you_mean, one_line


@dataclass(frozen=True)
class Options:
    """What ``sweep.…`` on the command line sets; nothing of it reaches the runs.

    Attributes:
        resume: go on with the latest sweep of the same command.
        dir: folder of the sweep; None: ``runs/<date>/<time>_sweep``.
        trials: jobs of a search; None: no search, every combination is a job.
        jobs: jobs at a time; None: as many as the GPUs allow, one without GPUs.
        launcher: ``local``, or ``slurm`` with the ``hydra.launcher.…`` words of the command.
    """

    resume: bool = False
    dir: str | None = None
    trials: int | None = None
    jobs: int | None = None
    launcher: str = "local"
    launcher_words: tuple[str, ...] = ()


@dataclass
class Job:
    """One run of a sweep.

    Attributes:
        number: from 0, in the order of the command; also the name of its folder.
        changes: the settings in which the jobs differ.
        overrides: all of its settings.
        config: its resolved configuration.
    """

    number: int
    changes: list[str]
    overrides: list[str]
    config: RunConfig = field(repr=False)

    def __str__(self) -> str:
        return " ".join(self.changes)


def split_options(words: Sequence[str]) -> tuple[Options, list[str]]:
    """The options of the sweep, and the other words of the command with those of its preset.

    Raises:
        ConfigError: an option or a preset that there is not, or a value out of range.
    """
    options: dict[str, Any] = {}
    presets: list[str] = []
    others: list[str] = []
    launcher_words: list[str] = []
    for word in words:
        key, _, value = word.partition("=")
        if key == "sweep":
            presets += _preset(value)
        elif key in ("hydra.sweep.dir", "sweep.dir"):
            options["dir"] = value
        elif key in ("sweep.jobs", "sweep.trials"):
            if not value.isdecimal() or int(value) < 1:
                raise ConfigError(f"{key}={value} must be an integer of at least 1")
            options[key.removeprefix("sweep.")] = int(value)
        elif key == "hydra/launcher":
            if value not in ("local", "slurm"):
                raise ConfigError(f"hydra/launcher={value} must be local or slurm")
            options["launcher"] = value
        elif key.lstrip("+").startswith("hydra.launcher."):
            launcher_words.append(word)
        elif key == "sweep.resume":
            if value.lower() not in ("true", "false"):
                raise ConfigError(f"sweep.resume={value} must be true or false")
            options["resume"] = value.lower() == "true"
        elif key.startswith("sweep."):
            known = ["sweep.resume", "sweep.dir", "sweep.jobs", "sweep.trials"]
            raise ConfigError(f"unknown setting {key!r}{did_you_mean(key, known)}")
        else:
            others.append(word)
    if launcher_words and options.get("launcher") != "slurm":
        raise ConfigError(f"{launcher_words[0]} is for SLURM: add hydra/launcher=slurm")
    if "trials" in options and options.get("launcher") == "slurm":
        raise ConfigError("sweep.trials waits for results before it goes on; leave hydra/launcher=slurm out")
    options["launcher_words"] = tuple(launcher_words)
    given = {word.partition("=")[0] for word in others}
    return Options(**options), [*(word for word in presets if word.partition("=")[0] not in given), *others]


def expand(overrides: Sequence[str]) -> list[Job]:
    """A job for every combination of the values that are separated by commas (or Hydra's choice and range).

    Raises:
        UserError: an override that does not fit, or a value out of range, in whatever job.
    """
    choices: list[list[str]] = []
    swept: list[bool] = []
    for override in parse(overrides):
        key = override.get_key_element()
        if isinstance(override.value(), IntervalSweep):
            raise ConfigError(f"{key}=interval(…) has no end of values; add sweep.trials=N to search it")
        swept.append(override.is_sweep_override())
        values = swept_values(override) if swept[-1] else [override.get_value_element_as_str()]
        choices.append([f"{key}={value}" for value in values])
    jobs = []
    for number, combination in enumerate(product(*choices)):
        changes = [word for word, varies in zip(combination, swept, strict=True) if varies]
        jobs.append(job_of(number, changes, combination))
    return jobs


def parse(overrides: Sequence[str]) -> list[Override]:
    """The words of a command as Hydra reads them.

    Raises:
        ConfigError: one that it cannot read.
    """
    try:
        return OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise ConfigError(one_line(error)) from error


def swept_values(override: Override) -> list[str]:
    """The values that are separated by commas, or those of Hydra's choice and range.

    Raises:
        ConfigError: another kind of sweep, such as glob.
    """
    try:
        return list(override.sweep_string_iterator())
    except HydraException as error:
        raise ConfigError(f"{override.input_line} cannot be listed; write the values with commas") from error


def job_of(number: int, changes: list[str], overrides: Sequence[str]) -> Job:
    """The job with these settings.

    Raises:
        UserError: settings that do not fit, or one out of its range.
    """
    config = compose_config(overrides)
    if not isinstance(config.trainer.devices, int | str):
        raise ConfigError(
            "a sweep hands out the GPUs: give trainer.devices their number, CUDA_VISIBLE_DEVICES their list"
        )
    return Job(number, changes, list(overrides), config)


def impossible(jobs: Sequence[Job]) -> dict[int, str]:
    """Numbers of the jobs whose head cannot be, and why; found without memory or arithmetic.

    Raises:
        UserError: another mistake, such as a model that there is not, or a setting of the data out of range.
    """
    import torch

    from noah_lightning.data import create_data
    from noah_lightning.models.classifier import build_model
    from noah_lightning.task import check_options

    for job in jobs:
        load_plugins(job.config.plugins)
    told: dict[str, str] = {}  # of each combination of model and head; seeds and rates make no difference
    reasons = {}
    for job in jobs:
        config = job.config.replace("model", pretrained=False, weights=None)
        kind = repr((config.model, config.head, config.data))
        if kind not in told:
            try:
                with torch.device("meta"):
                    build_model(config)
                check_options(config.recipe.optimizer)
                create_data(**config.data.arguments())  # looks at no file yet
                told[kind] = ""
            except HeadSettingError as error:
                told[kind] = str(error)
        if told[kind]:
            reasons[job.number] = told[kind]
    return reasons


def _preset(name: str) -> list[str]:
    folder = config_dir() / "sweep"
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in known:
        raise ConfigError(f"sweep has no preset {name!r}{did_you_mean(name, known)}")
    content = OmegaConf.to_container(OmegaConf.load(folder / f"{name}.yaml"))
    assert isinstance(content, dict)
    return [f"{key}={value}" for key, value in content["params"].items()]
