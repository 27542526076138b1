"""A training run as Hydra's task function: alone, or as a job of a sweep under any launcher."""

import multiprocessing
import os
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from noah_lightning.config.compose import from_hydra
from noah_lightning.config.schema import RunConfig
from noah_lightning.distributed.environment import rank, started_from_outside
from noah_lightning.distributed.signals import Stopped
from noah_lightning.errors import FAILED, MISTAKE, ConfigError, RunFailed, RunFailedEverywhere, UserError, one_line
from noah_lightning.run_dir import ASIDE, CHECKPOINTS, CONFIG, RESULTS, RunDir
from noah_lightning.sweep.folder import mark
from noah_lightning.sweep.launch import train_here, train_in_processes

_MISTAKE = "mistake.txt"  # in a run directory: the line of the mistake that the run ended in
_FOR_SWEEPS = re.compile(r"[+~]*(sweep[=.]|hydra/(launcher|sweeper)=|hydra\.(launcher|sweeper|sweep)\.)")


def train_job(cfg: DictConfig) -> float | None:
    """Train as the composed configuration says, in the output directory that Hydra made.

    A job of a sweep with ``sweep.resume=true``, or one that SLURM has requeued, resumes what is there.

    Returns:
        The best top-1 in percent; None in all processes but the first of those that torchrun or SLURM started.

    Raises:
        SystemExit: of a single run, caused by one of the following, so that Hydra adds no lines to it.
        UserError: anything the user can mend.
        RunFailed: the run failed.
        Stopped: a signal asked for it, and the state is saved.
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
        return RunDir(run_dir).results().top1 if rank() == 0 else None
    finally:
        if rank() == 0:
            _remove_if_empty(run_dir)


def _train_alone(cfg: DictConfig, run_dir: Path, overrides: list[str]) -> None:
    try:
        if any(map(_FOR_SWEEPS.match, overrides)):
            raise ConfigError("sweep… and hydra/launcher are for several runs: add -m")
        train_in_processes(from_hydra(cfg), run_dir)
    except (UserError, RunFailed, Stopped) as error:
        raise SystemExit(f"noah: {error}") from error


def _follow(cfg: DictConfig) -> None:
    """Train as one of the processes that ``torchrun`` started; the first one has the run directory."""
    try:
        config = from_hydra(cfg)
    except UserError:
        raise SystemExit(MISTAKE) from None  # the first process meets it too, and reports it
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
        multiprocessing.set_start_method(None, force=True)  # joblib's is unknown to the processes that a job starts
    if resume and not started_from_outside():  # of several processes each would find what the others leave
        make_ready(config, run_dir, run_dir.name)
    try:
        with _mistakes_noted(run_dir):
            train_in_processes(config, run_dir, resume=resume)
    except (UserError, RunFailed):
        if not (resume and has_finished(run_dir)):  # by another process, meanwhile
            raise
    except Stopped:
        raise
    except Exception as error:
        traceback.print_exc()  # a launcher returns the error without it
        raise RunFailed(f"{type(error).__name__}: {one_line(error)}") from None


def make_ready(config: RunConfig, run_dir: Path, name: str) -> int:
    """Leave in ``run_dir`` what a job can resume, or nothing: what it cannot is set aside, and reported.

    Args:
        config: resolved configuration of the job.
        name: of the job, for the report.

    Returns:
        Optimizer steps that are done; 0: the job starts from scratch.
    """
    if not run_dir.is_dir() or not any(run_dir.iterdir()):
        return 0
    try:
        with RunDir(run_dir).locked():
            return _steps_done(config, run_dir, name)
    except ConfigError:  # in use, or not writable: nothing is moved, and the job will say so
        return 0


def _steps_done(config: RunConfig, run_dir: Path, name: str) -> int:
    from noah_lightning.callbacks.checkpoints import last_saved  # here, as it imports Lightning

    try:
        if (run_dir / _MISTAKE).exists():
            raise ConfigError((run_dir / _MISTAKE).read_text().strip())
        RunDir(run_dir).check_same(config)
        saved = last_saved(run_dir)
        return saved.steps if saved else 0
    except UserError as reason:
        aside = _set_aside(run_dir)
        why = str(reason).partition("; ")[0]  # without the advice, which is for runs that are resumed by hand
        print(f"restart  {name}: {why}; the attempt is kept in {aside}", flush=True)
        return 0


def _set_aside(run_dir: Path) -> Path:
    """Make room for another attempt; returns where this one is kept."""
    aside = run_dir.parent / ASIDE
    try:
        aside.mkdir(exist_ok=True)
        names = (aside / f"{run_dir.name}-{attempt}" for attempt in count(1))
        return run_dir.rename(next(name for name in names if not name.exists()))
    except OSError as error:
        raise ConfigError(f"{aside} cannot be written ({one_line(error)})") from error


@contextmanager
def _mistakes_noted(run_dir: Path) -> Iterator[None]:
    """Note the mistake that a run ends in, for :func:`make_ready`: once it is mended, the run restarts from scratch.

    A run that had been resumed is spared: its data may just be missing on this machine.
    """
    begins = not (run_dir / CHECKPOINTS).exists()
    try:
        yield
    except UserError as mistake:
        if begins and (run_dir / CONFIG).exists():
            with (
                suppress(OSError, ConfigError),
                RunDir(run_dir).locked(),
            ):
                (run_dir / _MISTAKE).write_text(f"{mistake}\n")
        raise


def has_finished(run_dir: Path) -> bool:
    return (run_dir / RESULTS).is_file()


def _remove_if_empty(run_dir: Path) -> None:
    """Hydra makes the directory before anything is known to work; leave none behind that holds nothing."""
    with suppress(OSError):  # not empty, or gone already
        run_dir.rmdir()
        for folder in run_dir.parents:
            if Path.cwd() not in folder.parents:
                break
            folder.rmdir()
