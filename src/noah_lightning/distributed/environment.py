"""The processes of a run: their number, their rank, their CPUs, their memory and their standard output.

A run is one process tree: the first process composes the configuration and either trains itself or starts a process
per device. Under ``torchrun`` or SLURM these processes exist already. Torch is not imported here.
"""

import codecs
import ctypes
import io
import os
import sys
from multiprocessing import parent_process
from threading import Thread


def cores() -> int:
    """CPUs that this process may use."""
    try:
        return len(os.sched_getaffinity(0))  # respects containers and job schedulers
    except AttributeError:  # macOS, Windows
        return os.cpu_count() or 1


def rank() -> int:
    """Rank of this process among all processes of the run, from 0."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", 0)))


def started_from_outside() -> bool:
    """Whether ``torchrun`` or ``srun`` started one process per device, including this one."""
    return "TORCHELASTIC_RUN_ID" in os.environ or int(os.environ.get("SLURM_NTASKS", 1)) > 1


def processes_started() -> int:
    """The number of processes that ``torchrun``, ``srun`` or the first process started; 1 without them."""
    from lightning.fabric.plugins.environments import SLURMEnvironment

    if "TORCHELASTIC_RUN_ID" in os.environ:
        return int(os.environ["WORLD_SIZE"])
    return int(os.environ["SLURM_NTASKS"]) if SLURMEnvironment.detect() else 1  # interactive shells set it too


def end_with_parent() -> None:
    """Let this child process exit as soon as its parent process has died, even by SIGKILL."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    Thread(target=watch, daemon=True).start()


_IN_ASCII = {"×": "x", "−": "-", "–": "-", "…": "...", "±": "+-", "→": "->"}


def _replace(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    lacking = error.object[error.start : error.end]
    return "".join(_IN_ASCII.get(char, "?") for char in lacking), error.end


def replace_what_stdout_lacks() -> None:
    """Let standard output replace characters that its encoding lacks, where Python would raise an error."""
    codecs.register_error("noah_lightning", _replace)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="noah_lightning")


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # from malloc.h
_GIBIBYTE = 2**30


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for the next step, in this process and those it forks.

    By default it returns large blocks to the kernel at once, which clears every page again: 10,000 page faults in a
    training step of a ResNet-18 on small images, a tenth of its time. The process stays as large as at its peak.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt and mallopt(_MMAP_THRESHOLD, _GIBIBYTE):  # old glibc versions accept at most 32 MiB
        mallopt(_TRIM_THRESHOLD, -1)  # never
