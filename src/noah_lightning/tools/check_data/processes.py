"""All files looked at by as many processes as there are cores; a file that kills its process is found out."""

import os
import signal
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from multiprocessing import forkserver, get_context, resource_tracker
from typing import Any

from noah_lightning.distributed.environment import cores, end_with_parent
from noah_lightning.tools.check_data.image import Look, look_at

AHEAD = 4  # chunks for each process that are handed out beforehand
_stop: Any = None  # in a process of the pool: a shared number, 1 as soon as nobody wants its work


@dataclass(frozen=True)
class Chunk:
    """Files that one process looks at in one go; ``start`` is the number of the first among all."""

    start: int
    paths: Sequence[str]


@dataclass(frozen=True)
class Seen:
    chunk: Chunk
    looks: list[Look]
    process: int  # its id


def look_at_all(root: str, chunks: Iterable[Chunk]) -> Generator[Seen, None, None]:
    """Look at all files, in the order in which the chunks are done; at no time are many of them in memory.

    Args:
        root: folder that the paths start from.
        chunks: in any number.
    """
    left = iter(chunks)
    while suspects := (yield from _until_crash(root, left)):
        for chunk in suspects:
            yield from _alone(root, chunk)


def _until_crash(root: str, left: Iterator[Chunk]) -> Generator[Seen, None, list[Chunk]]:
    """Works through ``left``. Where a process dies, it stops and returns the chunks that may have killed it."""
    waiting: dict[int, Chunk] = {}
    running: set[Future[Seen]] = set()
    workers = cores()
    with _pool(workers) as pool:
        try:
            while True:
                for chunk in islice(left, AHEAD * workers - len(running)):
                    waiting[chunk.start] = chunk
                    running.add(pool.submit(_look_at_chunk, root, chunk))
                if not running:
                    return []
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    seen = future.result()
                    del waiting[seen.chunk.start]
                    yield seen
        except BrokenProcessPool:
            return list(waiting.values())


def _alone(root: str, chunk: Chunk) -> Iterator[Seen]:
    """Halves the chunk until the file that kills its process is alone."""
    try:
        with _pool(1) as pool:
            seen = pool.submit(_look_at_chunk, root, chunk).result()
    except BrokenProcessPool:
        if len(chunk.paths) == 1:
            yield Seen(chunk, [Look(remarks=[("crash", "")])], 0)
            return
        middle = len(chunk.paths) // 2
        yield from _alone(root, Chunk(chunk.start, chunk.paths[:middle]))
        yield from _alone(root, Chunk(chunk.start + middle, chunk.paths[middle:]))
    else:
        yield seen


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that do not hear Ctrl-C, which a terminal sends to all; they end with this one."""
    context = get_context("forkserver")  # imports once what all need, and has no threads that a fork would break
    context.set_forkserver_preload(["noah_lightning.tools.check_data.image"])
    resource_tracker.ensure_running()  # with the first process it would be started, which lifts the block
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()  # inherits the block, as does what it forks
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    stop = context.RawValue("b", 0)  # without a lock, which a process that dies might hold
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(stop,))
    try:
        yield pool
    finally:
        stop.value = 1
        pool.shutdown(cancel_futures=True)


def _begin(stop: Any) -> None:
    """First thing in each process: a check that is killed takes its processes along."""
    global _stop
    _stop = stop
    end_with_parent()


def _look_at_chunk(root: str, chunk: Chunk) -> Seen:
    # Where the check is interrupted, nobody reads the rest.
    looks = [look_at(os.path.join(root, path)) for path in chunk.paths if not _stop.value]
    return Seen(chunk, looks, os.getpid())
