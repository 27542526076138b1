"""The jobs of a sweep on a SLURM cluster, through submitit (an optional dependency)."""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from noah_lightning.config.compose import config_dir
from noah_lightning.config.processes import processes_per_node
from noah_lightning.config.schema import RunConfig
from noah_lightning.errors import ConfigError, did_you_mean, one_line
from noah_lightning.sweep.again import make_ready, mistakes_noted
from noah_lightning.sweep.folder import has_finished
from noah_lightning.sweep.plan import Job

LOGS = ".slurm"  # in the sweep's folder: what sbatch and submitit write
_SECONDS_BETWEEN_LOOKS = 2.0
_KINDS = {"setup": ListConfig, "additional": DictConfig, "timeout_min": int, "cpus_per_task": int, "max_jobs": int}


def launcher_settings(words: Sequence[str]) -> dict[str, Any]:
    """``conf/hydra/launcher/slurm.yaml`` with the ``hydra.launcher.…`` of the command line.

    Raises:
        ConfigError: a setting that there is not.
    """
    settings = OmegaConf.load(config_dir() / "hydra" / "launcher" / "slurm.yaml")
    assert isinstance(settings, DictConfig)
    for word in words:
        key, _, value = word.lstrip("+").removeprefix("hydra.launcher.").partition("=")
        name = key.partition(".")[0]
        if name not in settings:
            raise ConfigError(f"unknown setting 'hydra.launcher.{name}'{did_you_mean(name, map(str, settings))}")
        try:
            settings.merge_with_dotlist([f"{key}={value}"])
            OmegaConf.resolve(settings)
        except (OmegaConfBaseException, YAMLError, ValueError) as error:
            raise ConfigError(f"{word!r} cannot be set: {one_line(error)}") from error
        if not isinstance(settings[name], _KINDS.get(name, str | int | float | None)):
            raise ConfigError(
                f"hydra.launcher.{name}={value} is of another kind than conf/hydra/launcher/slurm.yaml has"
            )
    container = OmegaConf.to_container(settings)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def run_on_slurm(
    todo: Sequence[Job], folder: Path, settings: dict[str, Any], say: Callable[[str], None]
) -> dict[int, str]:
    """Submit all jobs and wait for them; returns the error's line of each that failed.

    Raises:
        ConfigError: submitit is not installed, this is no machine of a SLURM cluster, or SLURM refuses the jobs.
    """
    steps = [make_ready(job, folder / str(job.number)) for job in todo]
    ahead = list(zip(todo, _submit(todo, folder, settings), strict=True))
    for (job, slurm_job), done in zip(ahead, steps, strict=True):
        after = f"  after {done:,} steps" if done else ""
        say(f"submitted {job.number}  {job}  as SLURM job {slurm_job.job_id}{after}")
    failures = {}
    while ahead:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
        for job, slurm_job in [pair for pair in ahead if pair[1].done()]:
            ahead.remove((job, slurm_job))
            if error := _outcome(slurm_job):
                failures[job.number] = error
            say(f"{'failed  ' if error else 'finished'} {job.number}  {job}" + (f": {error}" if error else ""))
    return failures


class Training:
    """What each task of a SLURM job calls; submitit calls it anew after the job was preempted or ran out of time."""

    def __call__(self, config: RunConfig, run_dir: Path) -> str:
        """Train, or go on with the run that is in ``run_dir`` already; returns a mistake's line, or ""."""
        from noah_lightning.distributed.signals import Stopped
        from noah_lightning.errors import RunFailed, UserError
        from noah_lightning.sweep.launch import train_in_processes

        try:
            with mistakes_noted(run_dir):
                train_in_processes(config, run_dir, resume=True)
        except (UserError, RunFailed) as error:
            return "" if has_finished(run_dir) else str(error)  # perhaps by another job, meanwhile
        except Stopped as stopped:
            # The cluster takes the job away and may start it again. What Python sees of this end, submitit would
            # take for the job's last word.
            os._exit(128 + stopped.signal)
        return ""

    def checkpoint(self, config: RunConfig, run_dir: Path) -> Any:
        """submitit's question how to go on: just so."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, config, run_dir)


def _submit(todo: Sequence[Job], folder: Path, settings: dict[str, Any]) -> list[Any]:
    try:
        from submitit import SlurmExecutor
        from submitit.core.utils import FailedJobError
    except ImportError:
        raise ConfigError("hydra/launcher=slurm needs submitit: pip install 'noah-lightning[slurm]'") from None
    try:
        executor = SlurmExecutor(folder / LOGS)
    except RuntimeError as error:
        raise ConfigError(f"hydra/launcher=slurm: {one_line(error)}") from error
    trainer = todo[0].config.trainer
    if any(job.config.trainer != trainer for job in todo):
        raise ConfigError("hydra/launcher=slurm: the jobs of one sweep must have the same trainer settings")
    tasks = processes_per_node(trainer)
    options = {
        "job_name": f"noah-{folder.name}",
        "partition": settings["partition"],
        "account": settings["account"],
        "time": settings["timeout_min"],
        "nodes": trainer.num_nodes,
        "ntasks_per_node": tasks,
        "cpus_per_task": settings["cpus_per_task"],
        "mem": f"{settings['mem_gb']}G" if settings["mem_gb"] else None,
        "gpus_per_node": settings["gpus_per_node"] or (None if trainer.accelerator == "cpu" else tasks),
        "array_parallelism": settings["max_jobs"],
        "setup": settings["setup"],
        "additional_parameters": {"requeue": True, **settings["additional"]},
    }
    executor.update_parameters(**{name: value for name, value in options.items() if value is not None})
    try:
        with redirect_stderr(StringIO()), executor.batch():  # what sbatch says is in the error too
            return [executor.submit(Training(), job.config, (folder / str(job.number)).resolve()) for job in todo]
    except FailedJobError as error:
        raise ConfigError(
            f"SLURM refuses the jobs ({one_line(error)}); hydra.launcher.… says what to ask of it, see "
            "conf/hydra/launcher/slurm.yaml"
        ) from error


def _outcome(slurm_job: Any) -> str:
    """The error's line of a SLURM job that has ended, "" if all is well."""
    error = slurm_job.exception()
    if error is not None:
        return str(error).strip().splitlines()[-1]
    told = [line for line in slurm_job.results() if line]
    return told[0] if told else ""
