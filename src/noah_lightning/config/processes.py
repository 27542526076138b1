"""How many processes a run has, and how they share the images of a step."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from noah_lightning.config.checks import whole_number
from noah_lightning.errors import ConfigError


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
