"""What the launchers of this package share: how a job travels to its process, and how a sweep is stopped."""

import os
import signal
from abc import abstractmethod
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from types import FrameType
from typing import Any, NoReturn

import hydra.plugins.launcher
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobRuntime, JobStatus, run_job, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from noah_lightning.config.processes import processes_per_node
from noah_lightning.distributed.signals import Stopped
from noah_lightning.sweep.job import make_ready
from noah_lightning.sweep.plan import Job, compose_job
from noah_lightning.sweep.report import say

Results = Generator[tuple[Job, JobReturn], None, None]
Outcome = float | Exception  # what the task function of a job returned, or raised


class Launcher(hydra.plugins.launcher.Launcher):
    """A launcher that reports each job as soon as it has ended.

    Attributes:
        advice: for whoever stops a sweep.
    """

    advice = "the same command with sweep.resume=true resumes it"

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """For the sweepers of other packages."""
        loader = self.hydra_context.config_loader
        jobs = [
            compose_job(loader, self.config, number, words, [word for word in words if not word.startswith("hydra.")])
            for number, words in enumerate(job_overrides, start=initial_job_idx)
        ]
        with stoppable(self.advice), closing(self.run(iter(jobs))) as results:
            returns = {job.number: result for job, result in results}
        return [returns[job.number] for job in jobs]

    @abstractmethod
    def run(self, jobs: Iterator[Job]) -> Results:
        """Run the jobs; gives each as soon as it has ended. Closed before that, it stops those that run."""

    def announce(self, job: Job, word: str, where: str = "") -> None:
        """Report that a job starts or resumes, after what it cannot resume was set aside."""
        steps = make_ready(job.config, job.run_dir, str(job)) if job.composed.sweep.resume else 0
        after = f"  after {steps:,} steps" if steps else ""
        say(f"{'resumed' if steps and word == 'started' else word}  {job}{after}{where}")

    def payload(self, job: Job) -> bytes:
        """What :func:`run_payload` needs in another process."""
        import cloudpickle

        # By value, as the task function may be one of a script.
        return cloudpickle.dumps((self.hydra_context, self.task_function, job.composed, JobRuntime().get("name")))


def run_payload(payload: bytes) -> Outcome:
    """Run a job in this process; what the task function raises is returned."""
    import cloudpickle

    context, task_function, composed, name = cloudpickle.loads(payload)
    setup_globals()
    JobRuntime().set("name", name)
    HydraConfig.instance().set_config(composed)
    os.chdir(composed.hydra.runtime.cwd)
    result = run_job(
        task_function=task_function,
        config=composed,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
        hydra_context=context,
    )
    outcome: Outcome = result._return_value
    return outcome


def as_return(job: Job, outcome: Outcome) -> JobReturn:
    """What Hydra's launchers give to a sweeper."""
    status = JobStatus.FAILED if isinstance(outcome, Exception) else JobStatus.COMPLETED
    result = JobReturn(overrides=job.overrides, cfg=job.composed, status=status)
    result.return_value = outcome
    return result


def gpus_needed(job: Job) -> int:
    """GPUs of a machine that a job uses, if there are any."""
    return processes_per_node(job.config.trainer)


@contextmanager
def stoppable(advice: str) -> Iterator[None]:
    """SIGTERM and SIGUSR1 end what is inside; a second one does not cut the end short."""

    def stop(number: int, _: FrameType | None) -> NoReturn:
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        raise Stopped(number)

    before: dict[int, Any] = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    except (Stopped, KeyboardInterrupt):
        say(f"\nsweep    stopped; {advice}")
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
