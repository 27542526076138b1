"""Randomness without a history: what is drawn for a batch is a function of (seed, process, epoch, batch) alone.

So a run that goes on in the middle of an epoch draws what the uninterrupted run drew, with any number of loading
processes, and there is no state of any generator to save.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

import numpy as np
import torch


class Purpose(IntEnum):
    """Draws that must know nothing of each other."""

    AUGMENTATION = 0  # of the images of a batch, while they are loaded
    STEP = 1  # erasing, mixing and dropout, while they are trained on


def batch_seed(purpose: Purpose, seed: int, rank: int, epoch: int, batch: int) -> int:
    """63 bits; those of neighbouring batches are unrelated."""
    state = np.random.SeedSequence([seed, purpose, rank, epoch, batch]).generate_state(1, np.uint64)[0]
    return int(state >> 1)  # torch takes signed 64 bits


def draw_from(seed: int) -> None:
    """Let Python, numpy and torch, on every device, draw from ``seed`` on."""
    _seed_cpu(seed)
    # torch.manual_seed would keep the call for a GPU that no one uses, with a printed stack, in every step.
    if torch.cuda.is_initialized() or torch.backends.mps.is_available():
        torch.manual_seed(seed)


@contextmanager
def drawing_from(seed: int) -> Iterator[None]:
    """Draw from ``seed`` for a while; afterwards the generators of the CPU go on where they were."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    _seed_cpu(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def _seed_cpu(seed: int) -> None:
    random.seed(seed)
    np.random.seed([seed >> 32, seed & 0xFFFFFFFF])
    torch.default_generator.manual_seed(seed)
