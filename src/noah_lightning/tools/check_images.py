"""Check of image files, decoded as in training, by one process per core."""

import signal
import warnings
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from io import BytesIO
from itertools import chain, islice
from multiprocessing import active_children, forkserver, get_context, resource_tracker
from pathlib import Path

import simplejpeg
from PIL import Image

from noah_lightning.data.image import decode_rgb, exif_orientation, read_file, reason, usual_jpeg
from noah_lightning.distributed.environment import cores, end_with_parent
from noah_lightning.errors import one_line

CHUNK = 16  # files per task of a process
AHEAD = 4  # tasks per process that are submitted in advance
SMALLEST = 8  # pixels per side


@dataclass(frozen=True)
class Look:
    """Result of the check of a file."""

    remarks: list[tuple[str, str]]  # kind in check_data.KINDS, and a detail or ""
    digest: int = 0  # 64-bit hash of its bytes; 0 if it is not an image


def look_at_all(root: str, paths: Iterable[str], singly: bool = False) -> Generator[tuple[str, Look], None, None]:
    """Check the files at ``paths``, relative to ``root``; yields each path with its result, in order.

    If a process crashes, the files that it may have been decoding are checked again, one at a time (``singly``).
    """
    workers, size, ahead = (1, 1, 1) if singly else (cores(), CHUNK, AHEAD * cores())
    left = iter(paths)
    chunks = iter(lambda: list(islice(left, size)), [])
    while True:
        waiting: deque[list[str]] = deque()
        running: deque[Future[list[Look]]] = deque()
        try:
            with _pool(workers) as pool:
                while True:
                    for chunk in islice(chunks, ahead - len(running)):
                        waiting.append(chunk)
                        running.append(pool.submit(_look_at_chunk, root, chunk))
                    if not running:
                        return
                    looks = running.popleft().result()
                    yield from zip(waiting.popleft(), looks, strict=True)
        except BrokenProcessPool:
            if singly:
                [[path]] = waiting
                yield path, Look([("crash", "")])
            else:
                yield from look_at_all(root, chain(*waiting), singly=True)


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Pool of processes that end with this process, and ignore Ctrl-C, which a terminal sends to all."""
    context = get_context("forkserver")  # imports everything once, and has no threads that a fork would break
    context.set_forkserver_preload([__name__])
    resource_tracker.ensure_running()  # otherwise started with the first process, which unblocks SIGINT
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()  # inherits the blocked SIGINT, as do the processes that it forks
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    others = set(active_children())
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=end_with_parent)
    try:
        yield pool
    except BaseException:
        # Interrupted, or broken. A broken pool would wait forever for a process that it has started meanwhile.
        for process in set(active_children()) - others:
            process.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _look_at_chunk(root: str, paths: list[str]) -> list[Look]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return [look_at(Path(root, path)) for path in paths]


def look_at(path: Path) -> Look:
    """Check a file: read and decode it as in training."""
    try:
        data = read_file(path)
    except OSError as error:
        return Look([("unreadable", error.strerror or one_line(error))])
    if not data:
        return Look([("empty-file", "")])
    try:
        with Image.open(BytesIO(data)) as image:  # reads only the header
            form, mode, orientation = image.format, image.mode, exif_orientation(image)
        usual = usual_jpeg(data)
        pixels = decode_rgb(data) if usual is None else usual
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        return Look([("huge", one_line(error).partition(",")[0])])
    except Exception as error:  # PIL's decoders raise many unrelated types for broken files
        return Look([("undecodable", reason(error, 100))])
    remarks = []
    if orientation != 1 and form != "TIFF":  # Pillow itself turns those
        remarks.append(("turned", f"orientation {orientation}"))
    height, width = pixels.shape[:2]
    if min(height, width) < SMALLEST:
        remarks.append(("tiny", f"{width} × {height}"))
    if mode.startswith(("I", "F")):
        remarks.append(("clipped", mode))
    if usual is None and form == "JPEG" and mode in ("RGB", "L"):
        try:
            simplejpeg.decode_jpeg(data)
        except ValueError:  # warnings of libjpeg, which PIL ignores
            remarks.append(("damaged", ""))
    return Look(remarks, int.from_bytes(blake2b(data, digest_size=8).digest()))
