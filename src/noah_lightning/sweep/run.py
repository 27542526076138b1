"""The course of a sweep: take its jobs one by one, run them side by side, tell what came of it."""

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from noah_lightning.config.processes import processes_per_node
from noah_lightning.distributed.environment import started_from_outside
from noah_lightning.distributed.signals import Stopped
from noah_lightning.errors import ConfigError, RunFailed
from noah_lightning.sweep import folder as folders
from noah_lightning.sweep import job as jobs_
from noah_lightning.sweep.again import make_ready
from noah_lightning.sweep.grid import Grid
from noah_lightning.sweep.plan import Job, split_options
from noah_lightning.sweep.search import Search
from noah_lightning.sweep.slurm import launcher_settings, run_on_slurm
from noah_lightning.sweep.source import Source, say


@dataclass
class _Running:
    job: Job
    process: BaseProcess
    receiver: Connection
    gpus: list[str]


def sweep(words: Sequence[str]) -> None:
    """Run ``noah train -m <words>``.

    Raises:
        UserError: a mistake in the command; nothing has been trained then.
        RunFailed: not all jobs finished; each failure has been told.
        Stopped: SIGTERM or SIGUSR1 asked for it, and the jobs under way are saved.
    """
    if started_from_outside():
        raise ConfigError("a sweep starts its own processes: leave torchrun or srun out")
    options, command = split_options(words)
    source: Source = Search(command, options.trials) if options.trials else Grid(command)
    cluster = launcher_settings(options.launcher_words) if options.launcher == "slurm" else None
    if options.resume:
        folder = folders.find(options.dir, command, search=bool(options.trials))
    else:
        folder = folders.begin(options.dir, command, search=bool(options.trials))
    say(f"sweep    {source.total} jobs, {folder}")
    source.open(folder)
    go_on = "the same command with sweep.resume=true goes on"
    with _stoppable(go_on if cluster is None else f"its SLURM jobs go on; when they have ended, {go_on}"):
        if cluster is not None:
            _run_on_cluster(source, folder, cluster)
        else:
            _run_all(source, folder, options.jobs)
    _conclude(source, folder)


@contextmanager
def _stoppable(advice: str) -> Iterator[None]:
    """SIGTERM and SIGUSR1 end what is inside; a second one does not cut the end short."""

    def stop(number: int, _: FrameType | None) -> NoReturn:
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        raise Stopped(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    except (Stopped, KeyboardInterrupt):
        say(f"\nsweep    stopped; {advice}")
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run_all(source: Source, folder: Path, at_once: int | None) -> None:
    """Run the jobs, each on GPUs of its own."""
    running: list[_Running] = []
    free = _gpus()
    slots = at_once or max(1, len(free) // source.gpus)
    quiet = slots > 1
    try:
        while True:
            while len(running) < slots and (job := source.next()):
                running.append(_start(job, folder, free, quiet))
            if not running:
                break
            ready = wait([one.receiver for one in running])
            for one in [one for one in running if one.receiver in ready]:
                running.remove(one)
                free.extend(one.gpus)
                if error := _end(one):
                    say(f"failed   {one.job.number}  {one.job}: {error}", sys.stderr)
                elif quiet:
                    say(f"finished {one.job.number}  {one.job}")
                source.tell(one.job, error)
    finally:
        for one in running:  # stopped or interrupted: each is saved
            one.process.terminate()
        for one in running:
            _end(one)


def _run_on_cluster(source: Source, folder: Path, settings: dict[str, Any]) -> None:
    todo = list(iter(source.next, None))
    failures = run_on_slurm(todo, folder, settings, say) if todo else {}
    for job in todo:
        source.tell(job, failures.get(job.number, ""))


def _start(job: Job, folder: Path, free: list[str], quiet: bool) -> _Running:
    run_dir = folder / str(job.number)
    steps = make_ready(job, run_dir)
    need = min(_gpus_needed(job), len(free))
    gpus = [free.pop(0) for _ in range(need)]
    began = f"resumed  {job.number}  {job}  after {steps:,} steps" if steps else f"started  {job.number}  {job}"
    say(f"\n{began}" + (f"  on GPU {', '.join(gpus)}" if gpus else ""))
    return _Running(job, *jobs_.start(job.config, run_dir.resolve(), gpus, quiet), gpus)


def _end(one: _Running) -> str:
    """The error's line of a job that has ended, "" if it has finished."""
    try:
        error: str = one.receiver.recv()
    except EOFError:  # it could not even say what happened
        one.process.join()
        return f"the process ended with exit status {one.process.exitcode}"
    one.process.join()
    return error


def _conclude(source: Source, folder: Path) -> None:
    if len(source.skipped) == source.total:
        raise ConfigError(f"no job of the sweep can be: {source.skipped[0]}")
    parts = [f"{source.finished + len(source.before)} of {source.total} jobs finished"]
    parts += [f"{len(source.before)} of them before"] if source.before else []
    parts += [f"{len(source.skipped)} impossible"] if source.skipped else []
    parts += [f"{len(source.failed)} failed"] if source.failed else []
    say(f"\nsweep    {', '.join(parts)}; noah compare {folder}")
    if best := source.best():
        say(f"best     {best}")
    if source.failed:
        for number, reason in sorted(source.failed.items()):
            say(f"failed   {number}  {reason}", sys.stderr)
        raise RunFailed(f"{len(source.failed)} of {source.total} jobs failed; sweep.resume=true goes on with those")


def _gpus() -> list[str]:
    """Names of the GPUs there are, as CUDA_VISIBLE_DEVICES has them."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return visible.split(",")[:count] if visible else [str(number) for number in range(count)]


def _gpus_needed(job: Job) -> int:
    return processes_per_node(job.config.trainer)
