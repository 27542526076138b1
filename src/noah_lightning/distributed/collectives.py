"""A few numbers of each process, told to all."""

from collections.abc import Sequence

import lightning.pytorch as pl
import torch


def of_every_process(values: Sequence[float], task: pl.LightningModule) -> list[list[float]]:
    """``values`` of each process, exact, by its number; all processes call this at the same time.

    Lightning's own ``all_gather`` goes through a function of torch that is deprecated and says so in every run.
    """
    processes = task.trainer.world_size
    if processes == 1:
        return [list(values)]
    own = torch.tensor(values, dtype=torch.float64, device=task.device)
    every = [torch.empty_like(own) for _ in range(processes)]
    torch.distributed.all_gather(every, own)
    return [part.tolist() for part in every]
