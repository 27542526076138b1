"""Hydra's task function: trains a single run or a job of a sweep, in this process or in one process per device."""

import multiprocessing
import os
import re
import traceback
from contextlib import suppress
from datetime import datetime
from itertools import count
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from noah_lightning.config.compose import from_hydra
from noah_lightning.config.schema import RunConfig, processes_per_node
from noah_lightning.distributed.environment import rank, started_from_outside
from noah_lightning.distributed.launcher import run_in_processes
from noah_lightning.distributed.signals import Stopped
from noah_lightning.errors import FAILED, MISTAKE, ConfigError, RunFailed, RunFailedEverywhere, UserError, one_line
from noah_lightning.run_dir import ASIDE, CHECKPOINTS, CONFIG, LOG, RESULTS, RunDir
from noah_lightning.sweep.folder import mark, say

# In a run directory: the user error that ended its first attempt. Once it is fixed, the run restarts from scratch.
_MISTAKE = "mistake.txt"
_FOR_SWEEPS = re.compile(r"[+~]*(sweep[=.]|hydra/(launcher|sweeper)=|hydra\.(launcher|sweeper|sweep)\.)")


def train_job(cfg: DictConfig) -> float | None:
    """Train by the composed configuration, in Hydra's output directory.

    A job of a sweep with ``sweep.resume=true``, or one that SLURM has requeued, resumes its run.

    Returns:
        The best top-1, or mean average precision of multi-label data, in percent; None in ranks above 0 of processes
        started by torchrun or SLURM.

    Raises:
        SystemExit: in a single run, caused by one of the following, because Hydra prints other exceptions itself.
        UserError: anything the user can fix.
        RunFailed: the run failed.
        Stopped: the run was stopped by a signal, after its state was saved.
    """
    hydra = HydraConfig.get()
    run_dir = Path(hydra.runtime.output_dir)
    try:
        if hydra.mode == RunMode.MULTIRUN:
            _train_in_sweep(cfg, run_dir)
        elif rank() > 0:
            _follow(cfg)
        else:
            _train_alone(cfg, run_dir, [*hydra.overrides.task, *hydra.overrides.hydra])
        return RunDir(run_dir).results().score if rank() == 0 else None
    finally:
        if rank() == 0:
            _remove_if_empty(run_dir)


def train_in_processes(config: RunConfig, run_dir: Path, resume: bool = False, force: bool = False) -> None:
    """Train in this process or in one process per device; ``resume`` and ``force`` as for ``train.train``.

    Raises:
        UserError: anything the user can fix.
        RunFailed: the run failed, or a process crashed.
        Stopped: the run was stopped by a signal, after its state was saved.
    """
    devices = processes_per_node(config.trainer)
    if config.trainer.num_nodes > 1 and not started_from_outside():
        raise ConfigError("trainer.num_nodes requires torchrun or SLURM, which start one process for each device")
    if devices == 1 or started_from_outside():
        return train_here(config, run_dir, resume, force)
    try:
        run_in_processes(devices, train_here, config, run_dir, resume, force, imports="noah_lightning.train")
    except (UserError, RunFailed) as error:
        log = run_dir / LOG
        if log.is_file() and str(error) not in log.read_text(
            encoding="utf-8", errors="replace"
        ):  # an error of another rank
            with log.open("a", encoding="utf-8") as file:
                file.write(f"{datetime.now():%Y-%m-%d %H:%M:%S} error: {error}\n")
        raise


def train_here(config: RunConfig, run_dir: Path, resume: bool = False, force: bool = False) -> None:
    """Train in this process, which may be one of several; raises what ``train.train`` does."""
    from noah_lightning.loggers import console
    from noah_lightning.train import train

    console.start_logging()
    train(config, run_dir, resume, force)


def _train_alone(cfg: DictConfig, run_dir: Path, overrides: list[str]) -> None:
    try:
        if any(map(_FOR_SWEEPS.match, overrides)):
            raise ConfigError("sweep… and hydra/launcher are for sweeps: add -m")
        train_in_processes(from_hydra(cfg), run_dir)
    except (UserError, RunFailed, Stopped) as error:
        raise SystemExit(f"noah: {error}") from error


def _follow(cfg: DictConfig) -> None:
    """Train in a rank above 0 of processes started by ``torchrun``, without a run directory."""
    try:
        config = from_hydra(cfg)
    except UserError:
        raise SystemExit(MISTAKE) from None  # rank 0 reports the same error
    try:
        train_here(config, Path(os.devnull))
    except RunFailedEverywhere:
        raise SystemExit(FAILED) from None  # as above
    except (UserError, RunFailed, Stopped) as error:
        raise SystemExit(f"noah: {error}") from error


def _train_in_sweep(cfg: DictConfig, run_dir: Path) -> None:
    config = from_hydra(cfg)
    resume = cfg.sweep.resume or "SLURM_RESTART_COUNT" in os.environ
    if resume and has_finished(run_dir):
        return
    mark(run_dir.parent)
    if multiprocessing.get_start_method() not in multiprocessing.get_all_start_methods():
        multiprocessing.set_start_method(None, force=True)  # joblib's is not available in new processes
    if resume and not started_from_outside():  # several processes would interfere
        make_ready(config, run_dir, run_dir.name)
    first_attempt = not (run_dir / CHECKPOINTS).exists()
    try:
        train_in_processes(config, run_dir, resume=resume)
    except (UserError, RunFailed) as error:
        if resume and has_finished(run_dir):  # by another process in the meantime
            return
        # A resumed run is not restarted for a mistake, because its data may only be missing on this machine.
        if isinstance(error, UserError) and first_attempt and (run_dir / CONFIG).exists():
            with suppress(OSError, ConfigError), RunDir(run_dir).locked():
                (run_dir / _MISTAKE).write_text(f"{error}\n", encoding="utf-8")
        raise
    except Stopped:
        raise
    except Exception as error:
        traceback.print_exc()  # launchers return the error without its traceback
        raise RunFailed(f"{type(error).__name__}: {one_line(error)}") from None


def make_ready(config: RunConfig, run_dir: Path, name: str) -> int:
    """Prepare ``run_dir`` for a job: an attempt that cannot be resumed is moved and reported under ``name``.

    Returns:
        Optimizer steps done; 0 if the job starts from scratch.
    """
    if not run_dir.is_dir() or not any(run_dir.iterdir()):
        return 0
    from noah_lightning.callbacks.checkpoints import last_saved  # imports Lightning

    with suppress(ConfigError), RunDir(run_dir).locked():  # if it is in use or not writable, the job reports it
        try:
            if (run_dir / _MISTAKE).exists():
                raise ConfigError((run_dir / _MISTAKE).read_text(encoding="utf-8").strip())
            RunDir(run_dir).check_same(config)
            saved = last_saved(run_dir)
            return saved.steps if saved else 0
        except UserError as reason:
            aside = _set_aside(run_dir)
            why = str(reason).partition("; ")[0]  # without the advice, which is for single runs
            say(f"restart  {name}: {why}; the attempt is kept in {aside}")
    return 0


def _set_aside(run_dir: Path) -> Path:
    """Move an unfinished attempt; returns its new path."""
    aside = run_dir.parent / ASIDE
    try:
        aside.mkdir(exist_ok=True)
        names = (aside / f"{run_dir.name}-{attempt}" for attempt in count(1))
        return run_dir.rename(next(name for name in names if not name.exists()))
    except OSError as error:
        raise ConfigError(f"{aside} cannot be written ({one_line(error)})") from error


def has_finished(run_dir: Path) -> bool:
    return (run_dir / RESULTS).is_file()


def _remove_if_empty(run_dir: Path) -> None:
    """Remove the directory, which Hydra creates before the configuration is checked, if it is empty."""
    with suppress(OSError):  # not empty, or gone already
        run_dir.rmdir()
        for folder in run_dir.parents:
            if Path.cwd() not in folder.parents:
                break
            folder.rmdir()
