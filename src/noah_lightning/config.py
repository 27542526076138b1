"""The configuration folder: where it is, how it is composed, and what a mistake in it is called.

Hydra composes; this file adds the resolvers that the YAML files use and turns Hydra's and OmegaConf's errors into
one line that names the key and what is near it.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from noah_lightning.errors import ConfigError, UserError, did_you_mean, one_line

CONFIG_ERRORS = (HydraException, OmegaConfBaseException)


def config_dir() -> Path:
    """The ``conf`` folder: inside the installed package, or beside ``src`` in a clone."""
    package = Path(__file__).resolve().parent
    return next(folder for folder in (package / "conf", package.parents[1] / "conf") if folder.is_dir())


def register_resolvers() -> None:
    """Make ``${count_classes:root}`` known to OmegaConf."""

    def count_classes(root: str | None) -> int:
        from noah_lightning.data.tree import count_classes

        return count_classes(root)

    OmegaConf.register_new_resolver("count_classes", count_classes, replace=True)


def compose_config(overrides: Sequence[str]) -> DictConfig:
    """The resolved configuration of ``noah train <overrides>``, without starting Hydra's application.

    Raises:
        ConfigError: an override that does not fit.
        UserError: an interpolation that cannot be answered, such as the class count of missing data.
    """
    register_resolvers()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            return resolved(compose("config", overrides=list(overrides)))
    except CONFIG_ERRORS as error:
        raise explain(error) from error


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
    plain = OmegaConf.create(container)
    OmegaConf.set_struct(plain, True)
    assert isinstance(plain, DictConfig)
    return plain


def override(config: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """A copy of a resolved configuration with ``key=value`` pairs set; keys must exist.

    Raises:
        ConfigError: not a ``key=value`` pair, or a key that is not there.
    """
    config = config.copy()
    known = list(_keys(config))
    for pair in overrides:
        key, equals, _ = pair.partition("=")
        if not equals:
            raise ConfigError(f"{pair!r} is no override; write key=value")
        if key not in known:
            raise ConfigError(f"there is no setting {key!r}{did_you_mean(key, known)}")
        config.merge_with_dotlist([pair])
    return config


def settings(group: DictConfig, *leave_out: str) -> dict[str, Any]:
    """A group of the configuration as plain keyword arguments, without the named keys."""
    container = OmegaConf.to_container(group)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items() if key not in leave_out}


def explain(error: BaseException) -> UserError:
    """What went wrong while composing, in one line for the user."""
    cause: BaseException | None = error
    while cause is not None:  # a resolver's own error, wrapped by OmegaConf
        if isinstance(cause, UserError):
            return cause
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options is not None:
        return _unknown_option(error.missing_cfg_file, error.options)
    missing = re.search(r"Missing mandatory value: ([\w.]+)", str(error))
    if missing:
        return ConfigError(f"{missing[1]} has no value; add {missing[1]}=… to the command")
    unknown = re.search(r"Could not override '([^']+)'|Could not find '([^']+)'", str(error))
    if unknown:
        key = unknown[1] or unknown[2]
        return ConfigError(f"there is no setting {key!r}{did_you_mean(key, _default_keys())}")
    return ConfigError(one_line(error))


def _unknown_option(file: str, options: Sequence[str]) -> ConfigError:
    group, _, option = file.rpartition("/")
    advice = did_you_mean(option, options)
    if group == "model":
        advice += f" (for any model of timm: model=timm model.name={option})"
    return ConfigError(f"{group or 'the configuration'} has no option {option!r}{advice}")


def _default_keys() -> list[str]:
    with suppress(*CONFIG_ERRORS), initialize_config_dir(str(config_dir()), version_base="1.3"):
        return list(_keys(compose("config")))
    return []


def _keys(config: DictConfig, prefix: str = "") -> Iterator[str]:
    """All keys, dotted, groups before what is in them; nothing is resolved."""
    for key in map(str, config):
        yield f"{prefix}{key}"
        node = config._get_node(key)
        if isinstance(node, DictConfig) and not node._is_none() and not node._is_missing():
            yield from _keys(node, f"{prefix}{key}.")
