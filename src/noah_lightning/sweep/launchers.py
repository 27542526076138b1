"""Base class of the launchers, and ``hydra/launcher=local``, with a process tree and GPUs for each job."""

import os
import signal
import sys
from abc import abstractmethod
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager, redirect_stdout, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import hydra.plugins.launcher
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobRuntime, JobStatus, run_job, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from noah_lightning.config.schema import processes_per_node
from noah_lightning.distributed.environment import end_with_parent
from noah_lightning.distributed.signals import Stopped, handled
from noah_lightning.errors import ConfigError, RunFailed, count, one_line
from noah_lightning.sweep.folder import say
from noah_lightning.sweep.job import make_ready
from noah_lightning.sweep.plan import Job, compose_job

Outcome = float | Exception  # top-1 of a job in percent, or what it raised
Outcomes = Generator[tuple[Job, Outcome], None, None]


class Launcher(hydra.plugins.launcher.Launcher):
    """Launcher that yields each job as soon as it has ended; its settings are in ``hydra_plugins``."""

    advice = "the same command with sweep.resume=true resumes it"  # printed after a sweep was stopped

    def __init__(self, **options: Any) -> None:
        self.options = options

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    @abstractmethod
    def run(self, jobs: Iterator[Job]) -> Outcomes:
        """Run the jobs and yield each as soon as it has ended; closing the generator stops the running jobs."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Hydra's interface, for sweepers of other packages."""
        loader, given = self.hydra_context.config_loader, self.config.hydra.overrides.task
        jobs = [
            compose_job(loader, self.config, number, words, [word for word in words if word not in given])
            for number, words in enumerate(job_overrides, start=initial_job_idx)
        ]
        returns = {}
        with stoppable(self.advice), closing(self.run(iter(jobs))) as outcomes:
            for job, outcome in outcomes:
                status = JobStatus.FAILED if isinstance(outcome, Exception) else JobStatus.COMPLETED
                returns[job.number] = JobReturn(overrides=job.overrides, cfg=job.composed, status=status)
                returns[job.number].return_value = outcome
        return [returns[job.number] for job in jobs]

    def announce(self, job: Job, word: str, where: str = "") -> None:
        """Report that a job starts or resumes, after moving an attempt that cannot be resumed."""
        steps = make_ready(job.config, job.run_dir, str(job)) if job.composed.sweep.resume else 0
        after = f"  after {count(steps, 'step')}" if steps else ""
        say(f"{'resumed' if steps and word == 'started' else word}  {job}{after}{where}")

    def payload(self, job: Job) -> bytes:
        """Argument of :func:`run_payload` in another process."""
        import cloudpickle

        # By value, because the task function may be defined in a script.
        return cloudpickle.dumps((self.hydra_context, self.task_function, job.composed, JobRuntime().get("name")))


def run_payload(payload: bytes) -> Outcome:
    """Run a job in this process; exceptions are returned."""
    try:
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
    except KeyboardInterrupt:
        return RunFailed("interrupted")
    except OSError as error:  # Hydra could not create the directory
        return ConfigError(f"{error.filename} cannot be written ({error.strerror})")
    except Exception as error:  # such as an error of a Hydra callback
        return RunFailed(f"{type(error).__name__}: {one_line(error)}")


@contextmanager
def stoppable(advice: str) -> Iterator[None]:
    """Raise Stopped on SIGTERM and SIGUSR1 within this context; further signals are ignored."""
    numbers = (signal.SIGTERM, signal.SIGUSR1)

    def stop(number: int, _: FrameType | None) -> NoReturn:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        raise Stopped(number)

    with handled(stop, numbers):
        try:
            yield
        except (Stopped, KeyboardInterrupt) as end:
            say("")
            say(f"sweep    stopped; {advice}")
            raise end if isinstance(end, Stopped) else Stopped(signal.SIGINT) from None


class LocalLauncher(Launcher):
    """Runs as many jobs at a time as there are free GPUs, or ``sweep.jobs`` if that is set; without GPUs, one."""

    def run(self, jobs: Iterator[Job]) -> Outcomes:
        gpus, at_a_time = _gpus(), self.config.sweep.jobs
        running: dict[Any, tuple[Job, BaseProcess, list[str]]] = {}  # by the connection that receives the outcome
        held: Job | None = None  # waits for enough free GPUs

        def assigned(need: int) -> list[str] | None:
            """The least used GPUs for a job; None if it cannot start yet."""
            users = Counter(gpu for _, _, used in running.values() for gpu in used)
            free = len(gpus) - len(users) >= min(need, len(gpus)) if gpus else not running
            can_start = len(running) < at_a_time if at_a_time else free
            return sorted(gpus, key=users.__getitem__)[:need] if can_start else None

        try:
            while True:
                # A search chooses its next job by the results so far, so it is queried only when a job can start.
                while assigned(1) is not None and (held := held or next(jobs, None)):
                    need = processes_per_node(held.config.trainer)
                    if (own := assigned(need)) is None:
                        break
                    print(flush=True)
                    self.announce(held, "started", f"  on GPU {', '.join(own)}" if own else "")
                    quiet = (at_a_time or len(gpus) // need) > 1  # their output would be mixed
                    process, receiver = start(self.payload(held), own, quiet)
                    running[receiver], held = (held, process, own), None
                if not running:
                    break
                for ended in wait(list(running)):
                    job, process, _ = running.pop(ended)
                    yield job, _end(process, ended)
        finally:
            for _, process, _ in running.values():  # stopped or interrupted: each is saved
                process.terminate()
            for receiver, (_, process, _) in running.items():
                _end(process, receiver)


class SideBySideLauncher(Launcher):
    """Trains the heads of all jobs side by side in this process, on one frozen backbone."""

    def run(self, jobs: Iterator[Job]) -> Outcomes:
        from noah_lightning.sweep.side_by_side import SideBySideSweep  # imports torch

        yield from SideBySideSweep(self.config, self.options).run(jobs)


def start(payload: bytes, gpus: Sequence[str], quiet: bool) -> tuple[BaseProcess, Connection]:
    """Start a job in a process forked from a server that has imported everything once.

    Without ``gpus`` CUDA_VISIBLE_DEVICES is not changed. A ``quiet`` job only writes to its train.log.

    Returns:
        The process, and a connection that receives the outcome.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(["noah_lightning.train"])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(payload, list(gpus), quiet, sender))
    process.start()
    sender.close()
    return process, receiver


def _work(payload: bytes, gpus: list[str], quiet: bool, sender: Connection) -> None:
    end_with_parent()
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere if quiet else sys.stdout):
        outcome = run_payload(payload)
    with suppress(OSError):  # the sweep has ended
        sender.send(outcome)


def _end(process: BaseProcess, receiver: Any) -> Outcome:
    """The outcome of a job that has ended."""
    try:
        outcome: Outcome = receiver.recv()
        process.join()
        return outcome
    except EOFError:  # the process crashed
        process.join()
        return RunFailed(f"the process ended with exit status {process.exitcode}")


def _gpus() -> list[str]:
    """Names of the available GPUs, as in CUDA_VISIBLE_DEVICES."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return visible.split(",")[:count] if visible else [str(number) for number in range(count)]
