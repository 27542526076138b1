"""``hydra/launcher=local``: each job of a sweep has a process tree and GPUs of its own on this machine."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from noah_lightning.distributed.environment import end_with_parent
from noah_lightning.errors import ConfigError, RunFailed, one_line
from noah_lightning.sweep.launchers import Launcher, Outcome, Results, as_return, gpus_needed, run_payload
from noah_lightning.sweep.plan import Job


@dataclass
class _Running:
    job: Job
    process: BaseProcess
    receiver: Connection
    gpus: list[str]


class LocalLauncher(Launcher):
    """Runs jobs while there are GPUs that none uses, ``sweep.jobs`` at a time if that is set, else one."""

    def run(self, jobs: Iterator[Job]) -> Results:
        users = dict.fromkeys(_gpus(), 0)  # of each GPU, how many jobs are using it
        running: list[_Running] = []
        waiting: Job | None = None
        try:
            while True:
                # A search decides on its next job by the results so far: it is asked only when there is room.
                while (
                    self._room(waiting, users, len(running))
                    and (waiting := waiting or next(jobs, None))
                    and self._room(waiting, users, len(running))
                ):
                    running.append(self._start(waiting, users))
                    waiting = None
                if not running:
                    break
                ready = wait([one.receiver for one in running])
                for one in [one for one in running if one.receiver in ready]:
                    running.remove(one)
                    for gpu in one.gpus:
                        users[gpu] -= 1
                    yield one.job, as_return(one.job, _end(one))
        finally:
            for one in running:  # stopped or interrupted: each is saved
                one.process.terminate()
            for one in running:
                _end(one)

    def _room(self, job: Job | None, users: dict[str, int], running: int) -> bool:
        """Whether a job may start; None: one of the smallest kind."""
        if at_a_time := self.config.sweep.jobs:
            return bool(running < at_a_time)
        if not users:
            return not running
        return list(users.values()).count(0) >= (min(gpus_needed(job), len(users)) if job else 1)

    def _start(self, job: Job, users: dict[str, int]) -> _Running:
        need = gpus_needed(job)
        gpus = sorted(users, key=users.__getitem__)[:need]  # those that the fewest are using
        for gpu in gpus:
            users[gpu] += 1
        print(flush=True)
        self.announce(job, "started", f"  on GPU {', '.join(gpus)}" if gpus else "")
        quiet = (self.config.sweep.jobs or len(users) // need) > 1  # the lines of several would be mixed
        return _Running(job, *start(self.payload(job), gpus, quiet), gpus)


def start(payload: bytes, gpus: Sequence[str], quiet: bool) -> tuple[BaseProcess, Connection]:
    """Start a job in a process that is forked from a server, which has imported everything once.

    Args:
        payload: of a launcher.
        gpus: names of the GPUs it may use; none: as they are.
        quiet: leave its lines to the run's train.log.

    Returns:
        The process, and a connection that gives the outcome.
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
    outcome: Outcome
    try:
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere if quiet else sys.stdout):
            outcome = run_payload(payload)
    except KeyboardInterrupt:
        outcome = RunFailed("interrupted")
    except OSError as error:  # Hydra could not make the directory
        outcome = ConfigError(f"{error.filename} cannot be written ({error.strerror})")
    except Exception as error:  # such as that of a Hydra callback
        outcome = RunFailed(f"{type(error).__name__}: {one_line(error)}")
    with suppress(OSError):  # the sweep has ended
        sender.send(outcome)


def _end(one: _Running) -> Outcome:
    """The outcome of a job that has ended."""
    try:
        outcome: Outcome = one.receiver.recv()
    except EOFError:  # it could not even say what happened
        one.process.join()
        return RunFailed(f"the process ended with exit status {one.process.exitcode}")
    one.process.join()
    return outcome


def _gpus() -> list[str]:
    """Names of the GPUs there are, as CUDA_VISIBLE_DEVICES has them."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return visible.split(",")[:count] if visible else [str(number) for number in range(count)]
