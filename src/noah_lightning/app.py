"""``noah train``: Hydra's application around :func:`noah_lightning.train.train`."""

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from noah_lightning.config import (
    CONFIG_ERRORS,
    check_overrides,
    compose_config,
    config_dir,
    explain,
    register_resolvers,
    resolved,
)
from noah_lightning.errors import ConfigError, UserError
from noah_lightning.processes import processes_per_node, rank, run_in_processes, started_from_outside


def train(overrides: Sequence[str]) -> None:
    """Compose the configuration from ``overrides`` (or take Hydra's own flags) and train.

    Raises:
        UserError: anything the user can mend, Hydra's own complaints included.
    """
    register_resolvers()
    check_overrides(overrides)
    if rank() > 0:
        _follow(overrides)
        return
    sys.argv = ["noah train", *overrides]  # where Hydra looks
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing and exiting
    mistakes: list[UserError] = []

    def job(config: DictConfig) -> float | None:
        """One job; the returned validation top-1 is what a sweeper can optimise."""
        try:
            return _train_one(config)
        except UserError as error:  # kept from Hydra, which would add lines of its own
            hydra_config = HydraConfig.get()
            if hydra_config.mode == RunMode.RUN:
                mistakes.append(error)
            else:  # say so at once; the other jobs go on
                print(f"noah: {hydra_config.job.override_dirname}: {error}", file=sys.stderr)
                mistakes.append(ConfigError("not all jobs of the sweep succeeded; each failure is told above"))
            return None

    try:
        hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="config")(job)()
    except CONFIG_ERRORS as error:
        raise explain(error, overrides) from error
    if mistakes:
        raise mistakes[0]


def _follow(overrides: Sequence[str]) -> None:
    """Train as one of the processes that ``torchrun`` started, without Hydra, which would make a run directory."""
    if any(word.startswith("-") for word in overrides):
        return  # --help and its kind: the first process answers
    _train(compose_config([word for word in overrides if not word.startswith("hydra.")]), Path(os.devnull))


def _train_one(config: DictConfig) -> float:
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    try:
        config = resolved(config)
        return _train_in_processes(config, run_dir)
    finally:
        _remove_if_empty(run_dir)


def _train_in_processes(config: DictConfig, run_dir: Path) -> float:
    """Train here, or in a process for each device; returns the validation top-1."""
    # torch and Lightning only once the configuration is known to be sound
    count = processes_per_node(config.trainer)
    if count == 1 or started_from_outside():
        return _train(config, run_dir)
    if config.trainer.num_nodes > 1:
        raise ConfigError("trainer.num_nodes is for runs that torchrun or SLURM starts, one process for each device")
    top1: float = run_in_processes(count, _train, config, run_dir)
    return top1


def _train(config: DictConfig, run_dir: Path) -> float:
    from noah_lightning import console
    from noah_lightning.train import train

    console.start_logging()
    return train(config, run_dir).top1


def _remove_if_empty(run_dir: Path) -> None:
    """Hydra makes the directory before anything is known to work; leave none behind that holds nothing."""
    with suppress(OSError):  # not empty, or gone already
        run_dir.rmdir()
        for folder in run_dir.parents:
            if Path.cwd() not in folder.parents:
                break
            folder.rmdir()
