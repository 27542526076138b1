"""Launchers for clusters: ``hydra/launcher=slurm``, through submitit, and ``hydra/launcher=ray``."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import redirect_stderr
from io import StringIO
from typing import Any

from noah_lightning.config.schema import processes_per_node
from noah_lightning.distributed.signals import Stopped
from noah_lightning.errors import ConfigError, RunFailed, one_line
from noah_lightning.sweep.launchers import Launcher, Outcome, Outcomes, run_payload
from noah_lightning.sweep.plan import Job

_LOGS = ".slurm"  # folder of sbatch's and submitit's files, in the sweep's folder
_POLL_SECONDS = 2.0


class SlurmLauncher(Launcher):
    """Submits all jobs and waits for them; a preempted or requeued job resumes in its run directory."""

    advice = f"its SLURM jobs continue; when they have ended, {Launcher.advice}"

    def run(self, jobs: Iterator[Job]) -> Outcomes:
        """As :meth:`Launcher.run`, but running jobs are not stopped.

        Raises:
            ConfigError: submitit is not installed, SLURM is not available, or it rejects the jobs.
        """
        todo = list(jobs)
        pending = list(zip(todo, self._submit(todo), strict=True)) if todo else []
        for job, slurm_job in pending:
            self.announce(job, "submitted", f"  as SLURM job {slurm_job.job_id}")
        while pending:
            time.sleep(_POLL_SECONDS)
            for job, slurm_job in [pair for pair in pending if pair[1].done()]:
                pending.remove((job, slurm_job))
                if error := slurm_job.exception():
                    yield job, RunFailed(str(error).strip().splitlines()[-1])
                else:
                    outcomes = slurm_job.results()  # one for each task
                    yield job, next((one for one in outcomes if isinstance(one, Exception)), outcomes[0])

    def _submit(self, todo: list[Job]) -> list[Any]:
        try:
            from submitit import SlurmExecutor
            from submitit.core.utils import FailedJobError
        except ImportError:
            raise ConfigError("hydra/launcher=slurm needs submitit: pip install 'noah-lightning[slurm]'") from None
        folder, trainer, options = todo[0].run_dir.parent, todo[0].config.trainer, self.options
        try:
            executor = SlurmExecutor(folder / _LOGS)
        except RuntimeError as error:
            raise ConfigError(f"hydra/launcher=slurm: {one_line(error)}") from error
        if any(job.config.trainer != trainer for job in todo):
            raise ConfigError("hydra/launcher=slurm: the jobs of one sweep must have the same trainer settings")
        tasks = processes_per_node(trainer)
        executor.update_parameters(
            job_name=f"noah-{folder.name}",
            partition=options["partition"],
            account=options["account"],
            time=options["timeout_min"],
            nodes=trainer.num_nodes,
            ntasks_per_node=tasks,
            cpus_per_task=options["cpus_per_task"],
            mem=f"{options['mem_gb']}G" if options["mem_gb"] else None,
            gpus_per_node=options["gpus_per_node"] or (None if trainer.accelerator == "cpu" else tasks),
            array_parallelism=options["max_jobs"],
            setup=list(options["setup"]),
            additional_parameters={"requeue": True, **options["additional"]},
        )
        for job in todo:
            job.run_dir.mkdir(exist_ok=True)  # before its tasks start
        try:
            with redirect_stderr(StringIO()), executor.batch():  # the error contains sbatch's output
                return [executor.submit(SlurmTask(), self.payload(job)) for job in todo]
        except FailedJobError as error:
            raise ConfigError(f"SLURM rejects the jobs ({one_line(error)}); change hydra.launcher.…") from error


class SlurmTask:
    """Entry point of each task of a SLURM job; called again after the job was preempted or timed out."""

    def __call__(self, payload: bytes) -> Outcome:
        outcome = run_payload(payload)
        if isinstance(outcome, Stopped):
            # SLURM may requeue the job. After a normal exit, submitit would save this as the job's result.
            os._exit(128 + outcome.signal)
        return outcome

    def checkpoint(self, payload: bytes) -> Any:
        """Called by submitit on preemption: resume with the same payload."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, payload)


class RayLauncher(Launcher):
    """Runs each job as a Ray task in its own process, with one GPU for each of its devices."""

    def run(self, jobs: Iterator[Job]) -> Outcomes:
        """As :meth:`Launcher.run`; raises ConfigError if Ray is not installed or the cluster cannot be reached."""
        try:
            import ray
        except ImportError:
            raise ConfigError("hydra/launcher=ray needs Ray: pip install 'noah-lightning[ray]'") from None
        on_sigterm = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(self.options["address"], log_to_driver=False, logging_level="ERROR", **self.options["init"])
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray's handler would end this process at once
        except (ConnectionError, ValueError, TypeError, RuntimeError) as error:
            raise ConfigError(f"hydra/launcher=ray: {one_line(error)}") from error
        on_gpus = ray.cluster_resources().get("GPU", 0) > 0
        running: dict[Any, Job] = {}
        try:
            for job in jobs:
                devices = processes_per_node(job.config.trainer)
                gpus = devices if on_gpus and job.config.trainer.accelerator != "cpu" else 0
                cpus = self.options["cpus_per_device"] * devices
                # max_calls=1: each job gets a new process.
                task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_calls=1, max_retries=0)(run_payload)
                self.announce(job, "submitted")
                running[task.remote(self.payload(job))] = job
            while running:
                [ended], _ = ray.wait(list(running))
                try:
                    outcome: Outcome = ray.get(ended)
                except ray.exceptions.RayError as error:
                    outcome = RunFailed(one_line(error))
                yield running.pop(ended), outcome
        except SystemError as error:  # how Ray wraps an exception raised by a signal handler
            raise error.__cause__ or error from None
        finally:
            for task in running:  # stopped or interrupted: like Ctrl-C, so that each is saved
                ray.cancel(task)
            if running:
                ray.wait(list(running), num_returns=len(running))
            ray.shutdown()
