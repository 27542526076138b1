"""The number of processes of a run, and their share of the images of a step."""

import os
from typing import TYPE_CHECKING

from noah_lightning.errors import ConfigError

if TYPE_CHECKING:
    from noah_lightning.config.schema import TrainerSettings


def processes_per_node(trainer: "TrainerSettings") -> int:
    """Processes that ``trainer.devices`` asks for on this machine."""
    devices = trainer.devices
    if devices in ("auto", -1):
        outside = os.environ.get("LOCAL_WORLD_SIZE")
        return int(outside) if outside else _gpus(trainer.accelerator)
    return len(devices) if isinstance(devices, list) else int(devices)


def batch_per_process(batch: int, trainer: "TrainerSettings") -> int:
    """Images that a process takes in one pass, so that all passes of all processes make up one step of ``batch``.

    Raises:
        ConfigError: it does not divide.
    """
    processes, passes = processes_per_node(trainer) * trainer.num_nodes, trainer.accumulate_grad_batches
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
