"""Collectives: the few numbers that the processes of a run exchange.

Every process must call a collective at the same step; one that does not leaves the others waiting.
"""

from collections.abc import Sequence

import lightning.pytorch as pl
import torch


def gather_floats(values: Sequence[float], trainer: pl.Trainer) -> list[list[float]]:
    """The ``values`` of every process, exact, indexed by rank (an all-gather; a collective).

    Lightning's ``all_gather`` calls a deprecated function of torch, which warns in every run.
    """
    if trainer.world_size == 1:
        return [list(values)]
    own = torch.tensor(values, dtype=torch.float64, device=trainer.strategy.root_device)
    gathered = [torch.empty_like(own) for _ in range(trainer.world_size)]
    torch.distributed.all_gather(gathered, own)
    return [part.tolist() for part in gathered]


def max_over_ranks(values: Sequence[int], trainer: pl.Trainer) -> list[int]:
    """The largest of each of the ``values`` over all processes (an all-reduce; a collective)."""
    if trainer.world_size == 1:
        return list(values)
    largest = torch.tensor(values, device=trainer.strategy.root_device)
    torch.distributed.all_reduce(largest, op=torch.distributed.ReduceOp.MAX)
    return largest.tolist()
