"""Starts a training: in this process, or in one process per device."""

from datetime import datetime
from pathlib import Path

from noah_lightning.config.processes import processes_per_node
from noah_lightning.config.schema import RunConfig
from noah_lightning.distributed.environment import started_from_outside
from noah_lightning.distributed.launcher import run_in_processes
from noah_lightning.errors import ConfigError, RunFailed, UserError
from noah_lightning.run_dir import LOG


def train_in_processes(config: RunConfig, run_dir: Path, resume: bool = False, force: bool = False) -> None:
    """Train here, or in a process for each device; ``resume`` and ``force`` as for ``train.train``.

    Raises:
        UserError: anything the user can mend.
        RunFailed: a process crashed.
        Stopped: a signal asked for it, and the state is saved.
    """
    count = processes_per_node(config.trainer)
    if config.trainer.num_nodes > 1 and not started_from_outside():
        raise ConfigError("trainer.num_nodes is for runs that torchrun or SLURM starts, one process for each device")
    if count == 1 or started_from_outside():
        return train_here(config, run_dir, resume, force)
    try:
        run_in_processes(count, train_here, config, run_dir, resume, force, imports="noah_lightning.train")
    except (UserError, RunFailed) as error:
        _note(run_dir / LOG, str(error))
        raise


def train_here(config: RunConfig, run_dir: Path, resume: bool = False, force: bool = False) -> None:
    """Train in this process, which may be one of several; raises what ``train.train`` does."""
    from noah_lightning.loggers import console
    from noah_lightning.train import train

    console.start_logging()
    train(config, run_dir, resume, force)


def _note(log: Path, mistake: str) -> None:
    """Leave the line in the run's log, where the first process could not know of it."""
    if log.is_file() and mistake not in log.read_text():
        with log.open("a") as file:
            file.write(f"{datetime.now():%Y-%m-%d %H:%M:%S} error: {mistake}\n")
