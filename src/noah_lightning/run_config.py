"""The configuration of a run that is there already, to be used again."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError
from yaml import safe_load

from noah_lightning.config import config_dir, override
from noah_lightning.errors import ConfigError, did_you_mean
from noah_lightning.processes import batch_per_process
from noah_lightning.recorded import GROUPS, read_recorded
from noah_lightning.run_files import CONFIG, SWEEP
from noah_lightning.run_settings import check_each


def read_config(run_dir: Path) -> DictConfig:
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
    for group, known in (("", GROUPS), ("trainer", _keys("trainer/default")), ("model", _keys("model/timm"))):
        for key in content[group] if group else content:
            if key not in known:
                where = f"{group}.{key}" if group else key
                raise ConfigError(f"{run_dir / CONFIG}: there is no setting {where!r}{did_you_mean(key, known)}")
    config = OmegaConf.create(content)
    OmegaConf.set_struct(config, True)
    try:
        check_each(config)
    except ConfigError as error:
        raise ConfigError(f"{run_dir / CONFIG}: {error}") from None
    return config


def config_to_use(run_dir: Path, overrides: Sequence[str] = ()) -> DictConfig:
    """The configuration to build a run from again, with ``key=value`` pairs set.

    Raises:
        ConfigError: as :func:`read_config`, pairs that do not fit, or a model that has to be fetched from elsewhere
            and is not named in ``overrides``.
    """
    recorded = read_config(run_dir)
    config = override(recorded, overrides)
    check_each(config)
    name = recorded.model.name
    if ":" in name and not any(pair.startswith("model.name=") for pair in overrides):
        raise ConfigError(
            f"{run_dir / CONFIG} asks for model.name={name}, which is no model of timm's own list but fetched from "
            f"elsewhere; if you trust it, add model.name={name}"
        )
    return config


def split_anew(config: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """``config`` with the recipe's batch shared out among the processes there are now.

    Raises:
        ConfigError: it cannot be shared out so, or ``overrides`` say how.
    """
    if any(pair.startswith("data.batch_size=") for pair in overrides):
        raise ConfigError("data.batch_size follows from recipe.batch_size and the processes; change these")
    config = config.copy()
    config.data.batch_size = batch_per_process(config.recipe.batch_size, config.trainer)
    return config


@contextmanager
def missing_told(run_dir: Path) -> Iterator[None]:
    """A setting that the run's configuration lacks becomes a ConfigError that names it."""
    try:
        yield
    except (ConfigAttributeError, ConfigKeyError) as error:
        raise ConfigError(
            f"{run_dir / CONFIG}: {error.full_key} is missing: this is the configuration of another version"
        ) from error


@cache
def _keys(file: str) -> frozenset[str]:
    """The settings that a file of ``conf`` lists."""
    return frozenset(safe_load((config_dir() / f"{file}.yaml").read_text())) - {"defaults"}
