"""Number of processes of a run, and their share of a batch."""

import os
from typing import TYPE_CHECKING

from noah_lightning.errors import ConfigError

if TYPE_CHECKING:
    from noah_lightning.config.schema import TrainerSettings


def processes_per_node(trainer: "TrainerSettings") -> int:
    """Number of processes on this machine, by ``trainer.devices``."""
    devices = trainer.devices
    if devices in ("auto", -1):
        outside = os.environ.get("LOCAL_WORLD_SIZE")
        return int(outside) if outside else _gpus(trainer.accelerator)
    return len(devices) if isinstance(devices, list) else int(devices)


def batch_per_process(batch: int, trainer: "TrainerSettings") -> int:
    """Batch size of each pass of each process, for optimizer steps of ``batch`` images in all.

    Raises:
        ConfigError: the batch cannot be divided equally.
    """
    processes, passes = processes_per_node(trainer) * trainer.num_nodes, trainer.accumulate_grad_batches
    parts = processes * passes
    if batch % parts:
        below = batch - batch % parts
        near = f"{below} or {below + parts}" if below else f"{parts}"
        splits = ((processes, "processes"), (passes, "accumulated passes"))
        over = " × ".join(f"{number} {what}" for number, what in splits if number > 1)
        raise ConfigError(f"recipe.batch_size={batch} cannot be divided among {over}; use {near}")
    return batch // parts


def _gpus(accelerator: str) -> int:
    """Number of GPUs that Lightning uses for ``auto``; 1 if it uses the CPU."""
    if accelerator not in ("auto", "gpu", "cuda"):
        return 1
    import torch

    return max(1, torch.cuda.device_count())
