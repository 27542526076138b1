"""A job that did not finish, when its sweep is resumed: it goes on in its folder, or begins anew where it cannot."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from noah_lightning.errors import ConfigError, UserError
from noah_lightning.run_dir import CHECKPOINTS, RunDir
from noah_lightning.sweep import folder as folders
from noah_lightning.sweep.plan import Job
from noah_lightning.sweep.source import say

MISTAKE = "mistake.txt"  # in a run directory: the line of the mistake that the run ended in


def make_ready(job: Job, run_dir: Path) -> int:
    """Leave in ``run_dir`` what the job goes on from, or nothing: what it cannot go on from is set aside, and told.

    Returns:
        Optimiser steps that are done; 0: the job begins.
    """
    if not run_dir.exists():
        return 0
    try:
        with RunDir(run_dir).locked():
            return _steps_done(job, run_dir)
    except ConfigError:  # in use, or not to be written: nothing is moved, and the job will say so
        return 0


@contextmanager
def mistakes_noted(run_dir: Path) -> Iterator[None]:
    """Note the mistake that a run ends in, for :func:`make_ready`: once it is mended, the run begins anew.

    A run that had gone on is spared: its data may just be missing on this machine, which is no fault of what it has.
    """
    begins = not (run_dir / CHECKPOINTS).exists()
    try:
        yield
    except UserError as mistake:
        if begins and run_dir.exists():
            with suppress(OSError, ConfigError), RunDir(run_dir).locked():  # not in a run that another process is at
                (run_dir / MISTAKE).write_text(f"{mistake}\n")
        raise


def _steps_done(job: Job, run_dir: Path) -> int:
    from noah_lightning.callbacks.checkpoints import last_saved  # here, as it imports Lightning

    try:
        if (run_dir / MISTAKE).exists():
            raise ConfigError((run_dir / MISTAKE).read_text().strip())
        RunDir(run_dir).check_same(job.config)
        saved = last_saved(run_dir)
        return saved.steps if saved else 0
    except UserError as reason:
        aside = folders.set_aside(run_dir)
        why = str(reason).partition("; ")[0]  # without the advice, which is for runs that are resumed by hand
        say(f"\nanew     {job.number}  {job}: {why}; the attempt is kept in {aside}")
        return 0
