"""Start of a training in this process, or in one process per device."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from noah_lightning.config.schema import RunConfig, processes_per_node
from noah_lightning.distributed.environment import started_from_outside
from noah_lightning.distributed.launcher import run_in_processes
from noah_lightning.errors import ConfigError, RunFailed, UserError
from noah_lightning.run_dir import LOG, RunDir


def train_in_processes(config: RunConfig, run_dir: Path, resume: bool = False, force: bool = False) -> None:
    """Train in this process or in one process per device; ``resume`` and ``force`` as for ``train.train``.

    Raises:
        UserError: anything the user can fix.
        RunFailed: the run failed, or a process crashed.
        Stopped: the run was stopped by a signal, after its state was saved.
    """
    count = processes_per_node(config.trainer)
    if config.trainer.num_nodes > 1 and not started_from_outside():
        raise ConfigError("trainer.num_nodes requires torchrun or SLURM, which start one process for each device")
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


def resume(run_dir: Path, overrides: Sequence[str], force: bool = False) -> None:
    """Resume an interrupted run in its directory with its settings; raises what ``train_in_processes`` does.

    With ``force`` the batch may be divided differently, and the current epoch restarts. Raises UserError if there is
    no run, if it has finished, or for settings that may not change.
    """
    config = RunDir(run_dir).config_to_resume(overrides, force)
    train_in_processes(config, run_dir.resolve(), resume=True, force=force)


def _note(log: Path, mistake: str) -> None:
    """Add an error of another rank to the run's log, unless it is there already."""
    if log.is_file() and mistake not in log.read_text():
        with log.open("a") as file:
            file.write(f"{datetime.now():%Y-%m-%d %H:%M:%S} error: {mistake}\n")
