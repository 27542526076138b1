"""``noah train``: Hydra's application around :func:`noah_lightning.train.train`."""

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from noah_lightning.config.compose import (
    CONFIG_ERRORS,
    check_overrides,
    compose_config,
    config_dir,
    explain,
    from_hydra,
)
from noah_lightning.distributed.environment import rank
from noah_lightning.distributed.signals import Stopped
from noah_lightning.errors import FAILED, MISTAKE, ConfigError, RunFailed, RunFailedEverywhere, UserError
from noah_lightning.sweep.launch import train_here, train_in_processes


def train(overrides: Sequence[str]) -> None:
    """Compose the configuration from ``overrides`` (or take Hydra's own flags) and train.

    Raises:
        UserError: anything the user can mend, Hydra's own complaints included.
        RunFailed: a process of the run crashed, or jobs of a sweep failed.
        Stopped: a signal asked for it, and the state is saved.
    """
    if {"-m", "--multirun"} & set(overrides):
        overrides = [word for word in overrides if word not in ("-m", "--multirun")]
        flags = [word for word in overrides if word.startswith("-")]
        if not {"-h", "--help"} & set(flags):
            from noah_lightning.sweep import sweep

            if flags:
                raise ConfigError(f"{flags[0]} is for one run: leave -m out")
            return sweep(overrides)
    check_overrides(overrides)
    if rank() > 0:
        _follow(overrides)
        return
    sys.argv = ["noah train", *overrides]  # where Hydra looks
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing and exiting
    failures: list[Exception] = []
    begun = False

    def job(config: DictConfig) -> None:
        nonlocal begun
        begun = True
        try:
            _train_one(config)
        except (UserError, RunFailed, Stopped) as error:  # kept from Hydra, which would add lines of its own
            failures.append(error)

    try:
        hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="config")(job)()
    except CONFIG_ERRORS as error:
        raise explain(error, overrides) from error
    except OSError as error:
        if begun:
            raise
        raise ConfigError(
            f"{error.filename} cannot be written ({error.strerror}); give another hydra.run.dir=…"
        ) from error
    if failures:
        raise failures[0]


def _follow(overrides: Sequence[str]) -> None:
    """Train as one of the processes that ``torchrun`` started, without Hydra, which would make a run directory."""
    if any(word.startswith("-") for word in overrides):
        return  # --help and its kind: the first process answers
    try:
        config = compose_config([word for word in overrides if not word.startswith("hydra.")])
    except UserError:
        raise SystemExit(MISTAKE) from None  # the first process meets it too, and tells
    try:
        train_here(config, Path(os.devnull))
    except RunFailedEverywhere:
        raise SystemExit(FAILED) from None  # likewise


def _train_one(config: DictConfig) -> None:
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    try:
        train_in_processes(from_hydra(config), run_dir)
    finally:
        _remove_if_empty(run_dir)


def resume(run_dir: Path, overrides: Sequence[str], force: bool = False) -> None:
    """Resume a run that was interrupted, in its directory and with its settings.

    With ``force`` the images of a step may be divided otherwise, which restarts the epoch.

    Raises:
        UserError: no run there, one that has finished, or settings that may not change.
        RunFailed: a process crashed.
        Stopped: a signal asked for it, and the state is saved.
    """
    from noah_lightning.run_dir import RunDir

    config = RunDir(run_dir).config_to_resume(overrides, force)
    train_in_processes(config, run_dir.resolve(), resume=True, force=force)


def _remove_if_empty(run_dir: Path) -> None:
    """Hydra makes the directory before anything is known to work; leave none behind that holds nothing."""
    with suppress(OSError):  # not empty, or gone already
        run_dir.rmdir()
        for folder in run_dir.parents:
            if Path.cwd() not in folder.parents:
                break
            folder.rmdir()
