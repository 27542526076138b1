"""The course of a sweep: plan, skip what cannot be or has finished, run the rest, tell what came of it."""

import os
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TextIO

from noah_lightning.errors import ConfigError, RunFailed
from noah_lightning.processes import processes_per_node, started_from_outside
from noah_lightning.sweep import folder as folders
from noah_lightning.sweep import job as jobs_
from noah_lightning.sweep.plan import Job, expand, impossible, split_options
from noah_lightning.sweep.slurm import launcher_settings, run_on_slurm


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
    """
    if started_from_outside():
        raise ConfigError("a sweep starts its own processes: leave torchrun or srun out")
    options, command = split_options(words)
    jobs = expand(command)
    skipped = impossible(jobs)
    if len(skipped) == len(jobs):
        raise ConfigError(f"no job of the sweep can be: {skipped[0]}")
    cluster = launcher_settings(options.launcher_words) if options.launcher == "slurm" else None
    folder = folders.find(options.dir, command) if options.resume else folders.begin(options.dir, command)
    _say(f"sweep    {len(jobs)} jobs, {folder}")
    for number, reason in skipped.items():
        _say(f"skipped  {number}  {jobs[number]}: {reason}")
    done = [job for job in jobs if folders.has_finished(folder / str(job.number))]
    if done:
        _say(f"finished already: {', '.join(str(job.number) for job in done)}")
    todo = [job for job in jobs if job not in done and job.number not in skipped]
    if not todo:
        failures = {}
    elif cluster is not None:
        failures = run_on_slurm(todo, folder, cluster, _say)
    else:
        failures = _run_all(todo, folder, options.jobs)
    _conclude(folder, len(todo) - len(failures), len(done), skipped, failures, jobs)


def _run_all(todo: Sequence[Job], folder: Path, at_once: int | None) -> dict[int, str]:
    """Run the jobs, each on GPUs of its own; returns the error's line of each that failed."""
    waiting, running, failures = deque(todo), list[_Running](), dict[int, str]()
    free = _gpus()
    slots = at_once or max(1, len(free) // max(_gpus_needed(job) for job in todo))
    quiet = slots > 1
    try:
        while waiting or running:
            while waiting and len(running) < slots:
                running.append(_start(waiting.popleft(), folder, free, quiet))
            ready = wait([one.receiver for one in running])
            for one in [one for one in running if one.receiver in ready]:
                running.remove(one)
                free.extend(one.gpus)
                if error := _end(one):
                    failures[one.job.number] = error
                    _say(f"failed   {one.job.number}  {one.job}: {error}", sys.stderr)
                elif quiet:
                    _say(f"finished {one.job.number}  {one.job}")
    finally:
        for one in running:  # interrupted
            one.process.terminate()
            one.process.join()
    return failures


def _start(job: Job, folder: Path, free: list[str], quiet: bool) -> _Running:
    run_dir = folder / str(job.number)
    folders.set_aside(run_dir)
    need = min(_gpus_needed(job), len(free))
    gpus = [free.pop(0) for _ in range(need)]
    _say(f"\nstarted  {job.number}  {job}" + (f"  on GPU {', '.join(gpus)}" if gpus else ""))
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


def _conclude(
    folder: Path, finished: int, before: int, skipped: dict[int, str], failures: dict[int, str], jobs: Sequence[Job]
) -> None:
    parts = [f"{finished + before} of {len(jobs)} jobs finished"]
    parts += [f"{before} of them before"] if before else []
    parts += [f"{len(skipped)} impossible"] if skipped else []
    parts += [f"{len(failures)} failed"] if failures else []
    _say(f"\nsweep    {', '.join(parts)}; noah compare {folder}")
    if failures:
        for number, error in sorted(failures.items()):
            _say(f"failed   {number}  {jobs[number]}: {error}", sys.stderr)
        raise RunFailed(f"{len(failures)} of {len(jobs)} jobs failed; sweep.resume=true repeats only those")


def _gpus() -> list[str]:
    """Names of the GPUs there are, as CUDA_VISIBLE_DEVICES has them."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return visible.split(",")[:count] if visible else [str(number) for number in range(count)]


def _gpus_needed(job: Job) -> int:
    return processes_per_node(job.config.trainer)


def _say(line: str, file: TextIO | None = None) -> None:
    print(line, file=file or sys.stdout, flush=True)
