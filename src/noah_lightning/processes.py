"""The processes of one run: how many there are, and which one this is.

One run is one tree of processes: the first one composes the configuration and either trains by itself or starts a
process for each device. Under ``torchrun`` or SLURM the processes are there already.
"""

import os
from collections.abc import Mapping, Sequence
from multiprocessing import parent_process
from threading import Thread
from typing import Any

from noah_lightning.checks import whole_number
from noah_lightning.errors import ConfigError


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


def processes_per_node(trainer: Mapping[str, Any]) -> int:
    """Processes that ``trainer.devices`` asks for on this machine.

    Raises:
        ConfigError: neither a number nor a list of GPUs nor ``auto``.
    """
    devices = trainer["devices"]
    if isinstance(devices, int | str) and str(devices) in ("auto", "-1"):
        outside = os.environ.get("LOCAL_WORLD_SIZE")
        return int(outside) if outside else _gpus(trainer["accelerator"])
    if isinstance(devices, Sequence) and not isinstance(devices, str):  # a list of GPUs
        return whole_number("number of trainer.devices", len(devices), low=1)
    if not isinstance(devices, int) or isinstance(devices, bool) or devices < 1:
        raise ConfigError(f"trainer.devices={devices!r} must be a number of at least 1, a list of GPUs, or auto")
    return devices


def batch_per_process(batch: int, trainer: Mapping[str, Any]) -> int:
    """Images that a process takes in one pass, so that all passes of all processes make up one step of ``batch``.

    Raises:
        ConfigError: it does not divide.
    """
    whole_number("recipe.batch_size", batch, low=1)
    nodes = whole_number("trainer.num_nodes", trainer["num_nodes"], low=1)
    passes = whole_number("trainer.accumulate_grad_batches", trainer["accumulate_grad_batches"], low=1)
    processes = processes_per_node(trainer) * nodes
    parts = processes * passes
    if batch % parts:
        below = batch - batch % parts
        near = f"{below} or {below + parts}" if below else f"{parts}"
        splits = ((processes, "processes"), (passes, "accumulated passes"))
        over = " × ".join(f"{number} {what}" for number, what in splits if number > 1)
        raise ConfigError(f"recipe.batch_size={batch} cannot be split over {over}; {near} can")
    return batch // parts


def _gpus(accelerator: str) -> int:
    """GPUs that Lightning would use for ``auto``; 1 where it would use the CPU."""
    if accelerator not in ("auto", "gpu", "cuda"):
        return 1
    import torch

    return max(1, torch.cuda.device_count())


def end_with_parent() -> None:
    """A process that another one has started calls this: killed itself, that one takes it along."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    Thread(target=watch, daemon=True).start()
