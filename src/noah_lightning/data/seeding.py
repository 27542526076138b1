"""Seeding of the global random generators: what is drawn for a batch depends only on (seed, rank, epoch, batch).

A run that resumes within an epoch therefore draws the same numbers as an uninterrupted one, with any number of
DataLoader workers, and no generator state has to be saved.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

import numpy as np
import torch


class Purpose(IntEnum):
    """Independent streams of random numbers."""

    AUGMENTATION = 0  # of the images of a batch, in DataLoader workers
    STEP = 1  # erasing, mixing and dropout, in the training process


def batch_seed(purpose: Purpose, seed: int, rank: int, epoch: int, batch: int) -> int:
    """A seed of 63 bits; those of neighboring batches are unrelated."""
    state = np.random.SeedSequence([seed, purpose, rank, epoch, batch]).generate_state(1, np.uint64)[0]
    return int(state >> 1)  # torch accepts signed 64-bit integers


def seed_training_step(seed: int, rank: int, epoch: int, batch: int) -> None:
    """Seed the global generators of Python, NumPy and torch for one training batch of one process.

    Must be called before random erasing, mixing and dropout. Lightning calls no callback that early; the data
    module's ``on_before_batch_transfer`` is its first hook in a step.
    """
    draw_from(batch_seed(Purpose.STEP, seed, rank, epoch, batch))


def draw_from(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch, on every device."""
    _seed_cpu(seed)
    # For a GPU that is not in use, torch.manual_seed would queue a call with its stack trace in every step.
    if torch.cuda.is_initialized() or torch.backends.mps.is_available():
        torch.manual_seed(seed)


@contextmanager
def drawing_from(seed: int) -> Iterator[None]:
    """Seed the global generators of the CPU within this context, and restore them afterwards."""
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
