"""The configuration folder: where it is, how it is composed, and what a mistake in it is called.

Hydra composes; this file adds the resolvers that the YAML files use and turns Hydra's and OmegaConf's errors into
one line that names the key and what is near it.
"""

import inspect
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from yaml import YAMLError

from noah_lightning.config.checks import flag
from noah_lightning.config.processes import batch_per_process
from noah_lightning.errors import ConfigError, UserError, did_you_mean, one_line

CONFIG_ERRORS = (HydraException, OmegaConfBaseException)
Settings = TypeVar("Settings")
_NO_NAME = r"null|true|false|[+-]?(inf|nan|[\d._]*(e[+-]?\d+)?)"  # what Hydra takes for something else than a text
OPEN_ENDED = ("model.args.", "recipe.optimizer.options.")  # passed on to timm and torch, which refuse what they lack


def config_dir() -> Path:
    """The ``conf`` folder: inside the installed package, or beside ``src`` in a clone."""
    package = Path(__file__).resolve().parents[1]
    return next(folder for folder in (package / "conf", package.parents[1] / "conf") if folder.is_dir())


def register_resolvers() -> None:
    """Make the resolvers that the YAML files use known to OmegaConf."""

    def count_classes(root: str | None) -> int:
        from noah_lightning.data.tree import count_classes

        return count_classes(root)

    def count_packed_classes(root: str | None) -> int:
        from noah_lightning.data.pack_format import count_packed_classes

        return count_packed_classes(root)

    def equal_dropout(equal: bool, head_dropout: float) -> float:
        return head_dropout if flag("recipe.equal_dropout", equal) else 0.0

    OmegaConf.register_new_resolver("count_classes", count_classes, replace=True)
    OmegaConf.register_new_resolver("count_packed_classes", count_packed_classes, replace=True)
    OmegaConf.register_new_resolver("equal_dropout", equal_dropout, replace=True)
    OmegaConf.register_new_resolver("batch_per_process", batch_per_process, replace=True)


def compose_config(overrides: Sequence[str]) -> DictConfig:
    """The resolved configuration of ``noah train <overrides>``, without starting Hydra's application.

    Raises:
        ConfigError: an override that does not fit.
        UserError: an interpolation that cannot be answered, such as the class count of missing data.
    """
    register_resolvers()
    GlobalHydra.instance().clear()
    check_overrides(overrides)
    if any(re.match(r"sweep[=.]|hydra/launcher=", pair) for pair in overrides):
        raise ConfigError("sweep… and hydra/launcher are for several runs: add -m")
    try:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            return resolved(compose("config", overrides=list(overrides)))
    except CONFIG_ERRORS as error:
        raise explain(error, overrides) from error


def check_overrides(overrides: Sequence[str]) -> None:
    """Refuse what Hydra lets pass or trips over.

    ``+key=value`` adds a key: only the open-ended groups take any, elsewhere nothing would read it.

    Raises:
        ConfigError: an added key that nothing reads, a group whose option is no name, or a word that is no override.
    """
    for pair in overrides:
        group, equals, option = pair.lstrip("+~").partition("=")
        if equals and not group.strip():
            raise ConfigError(f"{pair!r} is no override; write key=value")
        if equals and _is_group(group) and re.fullmatch(_NO_NAME, option.strip(), re.IGNORECASE):
            options = sorted(path.stem for path in (config_dir() / group).glob("*.yaml"))
            raise ConfigError(f"{group}={option} names no option; there are {', '.join(options)}")
    added = [match[1] for pair in overrides if (match := re.match(r"\++([\w.]+)=", pair))]
    added = [key for key in added if not key.startswith((*OPEN_ENDED, "hydra."))]
    known = _known_keys(overrides) if added else []
    for key in added:
        if key not in known:
            raise ConfigError(f"there is no setting {key!r}{did_you_mean(key, known)}")


def _is_group(key: str) -> bool:
    return re.fullmatch(r"\w+", key) is not None and (config_dir() / key).is_dir()


def resolved(config: DictConfig) -> DictConfig:
    """``config`` with every interpolation replaced by its value.

    Raises:
        ConfigError: a mandatory value that is missing.
        UserError: what a resolver of ours raised.
    """
    try:
        container = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise explain(error) from error
    assert isinstance(container, dict)
    container.pop("sweep", None)  # of several runs, not of this one
    plain = OmegaConf.create(container)
    OmegaConf.set_struct(plain, True)
    assert isinstance(plain, DictConfig)
    return plain


def override(config: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """A copy of a resolved configuration with ``key=value`` pairs set; keys must exist.

    Raises:
        ConfigError: not a ``key=value`` pair, a key that is not there, or a value that is no YAML.
    """
    config = config.copy()
    known = list(_keys(config))
    for pair in overrides:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(f"{pair!r} is no override; write key=value")
        if "${" in value:
            raise ConfigError(f"{pair!r} refers to another setting; write its value")
        if key not in known:
            raise ConfigError(f"there is no setting {key!r}{did_you_mean(key, known)}")
        try:
            config.merge_with_dotlist([pair])
        except (OmegaConfBaseException, YAMLError, RecursionError, ValueError) as error:
            raise ConfigError(f"{pair!r} cannot be set: {one_line(error)}") from error
    return config


def settings(config: DictConfig, key: str, *leave_out: str) -> dict[str, Any]:
    """The group ``key`` of a resolved configuration as plain keyword arguments, without those left out.

    Raises:
        ConfigError: it is no group.
    """
    group = OmegaConf.select(config, key)
    if not isinstance(group, DictConfig):
        raise ConfigError(f"{key}={group} must be a group of settings; set the ones in it, such as {key}.NAME=…")
    container = OmegaConf.to_container(group)
    assert isinstance(container, dict)
    return {str(name): value for name, value in container.items() if name not in leave_out}


def typed(dataclass: type[Settings], config: DictConfig, key: str) -> Settings:
    """The group ``key`` as the dataclass that describes it.

    Raises:
        ConfigError: a setting that the dataclass lacks, or one of its own complaints.
    """
    known = inspect.signature(dataclass).parameters
    given = settings(config, key)
    for name in given:
        if name not in known:
            raise ConfigError(f"there is no setting {f'{key}.{name}'!r}{did_you_mean(name, known)}")
    return dataclass(**given)


def explain(error: BaseException, overrides: Sequence[str] = ()) -> UserError:
    """What went wrong while composing ``overrides``, in one line for the user."""
    cause: BaseException | None = error
    while cause is not None:  # a resolver's own error, wrapped by OmegaConf
        if isinstance(cause, UserError):
            return cause
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options is not None:
        return _unknown_option(error.missing_cfg_file, error.options)
    if isinstance(error, MissingMandatoryValue):
        return ConfigError(f"{error.full_key} has no value; add {error.full_key}=… to the command")
    missing = re.search(r"Missing mandatory value: ([\w.]+)", str(error))  # of something that is asked for elsewhere
    if missing:
        return ConfigError(f"{missing[1]} has no value; add {missing[1]}=… to the command")
    several = re.search(r"Ambiguous value for argument '(.+)'$", str(error), re.MULTILINE)
    if several:
        return ConfigError(f"{several[1]} is several values: add -m for a run of each, or write [...] for a list")
    unknown = re.search(r"Could not override '([^']+)'|Could not find '([^']+)'", str(error))
    if unknown:
        key = unknown[1] or unknown[2]
        return ConfigError(f"there is no setting {key!r}{did_you_mean(key, _known_keys(overrides))}")
    return ConfigError(one_line(error))


def _unknown_option(file: str, options: Sequence[str]) -> ConfigError:
    group, _, option = file.rpartition("/")
    advice = did_you_mean(option, options)
    if group == "model":
        advice += f" (for any model of timm: model=timm model.name={option})"
    return ConfigError(f"{group or 'the configuration'} has no option {option!r}{advice}")


def _known_keys(overrides: Sequence[str]) -> list[str]:
    """The settings there are with the groups that ``overrides`` choose."""
    GlobalHydra.instance().clear()
    choices = [pair for pair in overrides if "=" in pair and _is_group(pair.partition("=")[0])]
    with suppress(*CONFIG_ERRORS), initialize_config_dir(str(config_dir()), version_base="1.3"):
        return list(_keys(compose("config", overrides=choices)))
    return []


def _keys(config: DictConfig, prefix: str = "") -> Iterator[str]:
    """All keys, dotted, groups before what is in them; nothing is resolved."""
    for key in map(str, config):
        yield f"{prefix}{key}"
        node = config._get_node(key)
        if isinstance(node, DictConfig) and not node._is_none() and not node._is_missing():
            yield from _keys(node, f"{prefix}{key}.")
