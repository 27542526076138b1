"""``hydra/launcher=slurm``: each job of a sweep is a job of a SLURM cluster, through submitit."""

import os
import time
from collections.abc import Iterator
from contextlib import redirect_stderr
from io import StringIO
from typing import Any

from noah_lightning.distributed.signals import Stopped
from noah_lightning.errors import ConfigError, RunFailed, one_line
from noah_lightning.sweep.launchers import Launcher, Outcome, Results, as_return, gpus_needed, run_payload
from noah_lightning.sweep.plan import Job

LOGS = ".slurm"  # in the sweep's folder: what sbatch and submitit write
_SECONDS_BETWEEN_LOOKS = 2.0


class SlurmLauncher(Launcher):
    """Submits all jobs and waits for them; one that is preempted or requeued resumes in its run directory.

    Args:
        options: as ``SlurmConf`` in ``hydra_plugins`` describes them.
    """

    advice = f"its SLURM jobs continue; when they have ended, {Launcher.advice}"

    def __init__(self, **options: Any) -> None:
        self.options = options

    def run(self, jobs: Iterator[Job]) -> Results:
        """As :meth:`Launcher.run`, but the jobs of the cluster are not stopped.

        Raises:
            ConfigError: submitit is not installed, this machine is not of a SLURM cluster, or SLURM refuses the jobs.
        """
        if not (todo := list(jobs)):
            return
        ahead = list(zip(todo, self._submit(todo), strict=True))
        for job, slurm_job in ahead:
            self.announce(job, "submitted", f"  as SLURM job {slurm_job.job_id}")
        while ahead:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
            for job, slurm_job in [pair for pair in ahead if pair[1].done()]:
                ahead.remove((job, slurm_job))
                yield job, as_return(job, _outcome(slurm_job))

    def _submit(self, todo: list[Job]) -> list[Any]:
        try:
            from submitit import SlurmExecutor
            from submitit.core.utils import FailedJobError
        except ImportError:
            raise ConfigError("hydra/launcher=slurm needs submitit: pip install 'noah-lightning[slurm]'") from None
        folder, trainer, options = todo[0].run_dir.parent, todo[0].config.trainer, self.options
        try:
            executor = SlurmExecutor(folder / LOGS)
        except RuntimeError as error:
            raise ConfigError(f"hydra/launcher=slurm: {one_line(error)}") from error
        if any(job.config.trainer != trainer for job in todo):
            raise ConfigError("hydra/launcher=slurm: the jobs of one sweep must have the same trainer settings")
        tasks = gpus_needed(todo[0])
        asked = {
            "job_name": f"noah-{folder.name}",
            "partition": options["partition"],
            "account": options["account"],
            "time": options["timeout_min"],
            "nodes": trainer.num_nodes,
            "ntasks_per_node": tasks,
            "cpus_per_task": options["cpus_per_task"],
            "mem": f"{options['mem_gb']}G" if options["mem_gb"] else None,
            "gpus_per_node": options["gpus_per_node"] or (None if trainer.accelerator == "cpu" else tasks),
            "array_parallelism": options["max_jobs"],
            "setup": list(options["setup"]),
            "additional_parameters": {"requeue": True, **options["additional"]},
        }
        executor.update_parameters(**{name: value for name, value in asked.items() if value is not None})
        for job in todo:
            job.run_dir.mkdir(exist_ok=True)  # for all of its tasks
        try:
            with redirect_stderr(StringIO()), executor.batch():  # what sbatch says is in the error too
                return [executor.submit(SlurmTask(), self.payload(job)) for job in todo]
        except FailedJobError as error:
            raise ConfigError(
                f"SLURM refuses the jobs ({one_line(error)}); hydra.launcher.… says what to ask of it"
            ) from error


class SlurmTask:
    """What each task of a SLURM job calls; submitit calls it again after the job was preempted or ran out of time."""

    def __call__(self, payload: bytes) -> Outcome:
        outcome = run_payload(payload)
        if isinstance(outcome, Stopped):
            # The cluster takes the job away and may start it again. What Python sees of this end, submitit would
            # take for the job's result.
            os._exit(128 + outcome.signal)
        return outcome

    def checkpoint(self, payload: bytes) -> Any:
        """submitit's question how to resume: in the same way."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, payload)


def _outcome(slurm_job: Any) -> Outcome:
    error = slurm_job.exception()
    if error is not None:
        return RunFailed(str(error).strip().splitlines()[-1])
    outcomes = slurm_job.results()  # of each task
    return next((outcome for outcome in outcomes if isinstance(outcome, Exception)), outcomes[0])
