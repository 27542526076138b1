"""Composition of the configuration from ``conf/``, with Hydra's errors as one line."""

import re
from collections.abc import Iterator, Mapping, Sequence
from glob import escape
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from yaml import YAMLError

from noah_lightning.config.parsing import parse
from noah_lightning.config.schema import RunConfig
from noah_lightning.errors import ConfigError, UserError, did_you_mean, one_line, shell_word

CONFIG_ERRORS = (HydraException, OmegaConfBaseException)
_NOT_A_NAME = r"null|true|false|[+-]?(inf|nan|[\d._]*(e[+-]?\d+)?)"  # what Hydra does not parse as a string


def config_dir() -> Path:
    """The ``conf`` folder: inside the installed package, or next to ``src`` in a clone."""
    package = Path(__file__).resolve().parents[1]
    return next(folder for folder in (package / "conf", package.parents[1] / "conf") if folder.is_dir())


def compose_config(overrides: Sequence[str]) -> RunConfig:
    """The configuration of ``noah train <overrides>``, without starting Hydra's application.

    Raises:
        UserError: an invalid override, or a resolver's error, such as that data is missing whose classes it counts.
    """
    check_overrides(overrides)
    if any(re.match(r"sweep[=.]|hydra/launcher=", pair) for pair in overrides):
        raise ConfigError("sweep… and hydra/launcher are for sweeps: add -m")
    try:
        return from_hydra(_compose(overrides))
    except CONFIG_ERRORS as error:
        raise explain(error, overrides) from error


def _compose(overrides: Sequence[str]) -> DictConfig:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return compose("config", overrides=list(overrides))


def from_hydra(composed: DictConfig) -> RunConfig:
    """Resolve and parse what Hydra has composed; raises UserError as :func:`compose_config`."""
    try:
        content: Any = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise explain(error) from error
    content.pop("sweep", None)  # settings of the sweep, not of the run
    return parse(RunConfig, content)


def check_overrides(overrides: Sequence[str]) -> None:
    """Raise ConfigError for mistakes that Hydra does not handle: an option that is not a name, or a missing key."""
    for pair in overrides:
        group, equals, option = pair.lstrip("+~").partition("=")
        if not (equals or pair.startswith("~")) or not group.strip():
            options = [f"{path.parent.name}={pair}" for path in config_dir().glob(f"*/{escape(pair)}.yaml")]
            such = f"such as {' or '.join(sorted(options))}" if options else "or run noah settings for all keys"
            raise ConfigError(f"{pair!r} is not an override; write key=value, {such}")
        if equals and _is_group(group) and re.fullmatch(_NOT_A_NAME, option.strip(), re.IGNORECASE):
            options = sorted(path.stem for path in (config_dir() / group).glob("*.yaml"))
            raise ConfigError(f"{group}={option} is not an option; choose from {', '.join(options)}")


def _is_group(key: str) -> bool:
    return re.fullmatch(r"\w+", key) is not None and (config_dir() / key).is_dir()


def override(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """A configuration with ``key=value`` pairs set; keys must exist.

    Raises:
        ConfigError: not a ``key=value`` pair, an unknown key, or a value that is not YAML or out of range.
    """
    plain: Any = config.model_dump()
    content, known = OmegaConf.create(plain), [key for key, _ in dotted(plain)]
    for pair in overrides:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(f"{pair!r} is not an override; write key=value")
        if "${" in value:
            raise ConfigError(f"{pair!r} refers to another setting; write its value")
        if key not in known:
            raise ConfigError(f"unknown setting {key!r}{did_you_mean(key, known)}")
        try:
            content.merge_with_dotlist([pair])
        except (OmegaConfBaseException, YAMLError, RecursionError, ValueError) as error:
            raise ConfigError(f"{pair!r} cannot be set: {one_line(error)}") from error
    plain = OmegaConf.to_container(content)
    return parse(RunConfig, plain)


def explain(error: BaseException, overrides: Sequence[str] = ()) -> UserError:
    """An error raised while composing ``overrides``, as one line for the user."""
    cause: BaseException | None = error
    while cause is not None:  # an error raised by a resolver, wrapped by OmegaConf
        if isinstance(cause, UserError):
            return cause
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options is not None:
        group, _, option = error.missing_cfg_file.rpartition("/")
        advice = did_you_mean(option, error.options)
        if group == "model":
            advice += f" (for any model of timm: model=timm model.name={option})"
        return ConfigError(f"{group or 'the configuration'} has no option {option!r}{advice}")
    if isinstance(error, OverrideParseException):
        name, _, value = str(error.override).partition("=")
        quoted = value.replace('"', r"\"")
        suggestion = shell_word(f'{name}="{quoted}"')
        return ConfigError(f"{error.override!r} cannot be parsed; text is quoted, also for the shell: {suggestion}")
    text = str(error)
    if missing := re.search(r"Missing mandatory value: ([\w.]+)", text):
        key = error.full_key if isinstance(error, MissingMandatoryValue) else missing[1]
        return ConfigError(f"{key} has no value; add {key}=… to the command")
    if several := re.search(r"Ambiguous value for argument '(.+)'$", text, re.MULTILINE):
        return ConfigError(f"{several[1]} is several values: add -m for a run of each, or write [...] for a list")
    if unknown := re.search(r"Could not (?:override|find) '([^']+)'", text):
        return ConfigError(f"unknown setting {unknown[1]!r}{did_you_mean(unknown[1], _composed_keys(overrides))}")
    return ConfigError(one_line(error))


def _composed_keys(overrides: Sequence[str]) -> list[str]:
    """Keys of the configuration with the groups chosen in ``overrides``."""
    choices = [pair for pair in overrides if "=" in pair and _is_group(pair.partition("=")[0])]
    try:
        unresolved: Any = OmegaConf.to_container(_compose(choices))
    except CONFIG_ERRORS:
        return []
    return [key for key, _ in dotted(unresolved)]


def dotted(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each group, and each setting in it, with its dotted key."""
    for key, value in tree.items():
        yield f"{prefix}{key}", value
        if isinstance(value, Mapping):
            yield from dotted(value, f"{prefix}{key}.")
