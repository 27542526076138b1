"""The processes of one run: how many there are, and which one this is.

One run is one tree of processes: the first one composes the configuration and either trains by itself or starts a
process for each device. Under ``torchrun`` or SLURM the processes are there already.
"""

import ctypes
import os
import sys
from multiprocessing import parent_process
from threading import Thread


def cores() -> int:
    """CPUs that this process may use."""
    try:
        return len(os.sched_getaffinity(0))  # honours containers and job schedulers
    except AttributeError:  # macOS, Windows
        return os.cpu_count() or 1


def rank() -> int:
    """Number of this process among all of the run, from 0."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", 0)))


def started_from_outside() -> bool:
    """Whether ``torchrun`` or ``srun`` has started a process for each device, this one among them."""
    return "TORCHELASTIC_RUN_ID" in os.environ or int(os.environ.get("SLURM_NTASKS", 1)) > 1


def processes_started() -> int:
    """How many processes ``torchrun``, ``srun`` or the first process has started; 1 without them."""
    from lightning.fabric.plugins.environments import SLURMEnvironment

    if "TORCHELASTIC_RUN_ID" in os.environ:
        return int(os.environ["WORLD_SIZE"])
    return int(os.environ["SLURM_NTASKS"]) if SLURMEnvironment.detect() else 1  # an interactive shell has it too


def end_with_parent() -> None:
    """A process that another one has started calls this: killed itself, that one takes it along."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    Thread(target=watch, daemon=True).start()


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h
_GIBIBYTE = 2**30


def keep_freed_memory() -> None:
    """Lets glibc keep what a step frees for the next step, in all of this process and those it forks.

    By default it gives large blocks back to the system at once, which then has to clear each page again: 10,000 page
    faults in a step of a ResNet-18 on small images, a tenth of its time. The process stays as large as it was at
    its peak. Other C libraries are left alone.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # not in musl
    if mallopt and mallopt(_MMAP_THRESHOLD, _GIBIBYTE):  # an old glibc takes 32 MiB at most
        mallopt(_TRIM_THRESHOLD, -1)  # never
