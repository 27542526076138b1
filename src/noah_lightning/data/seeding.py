"""Seeding of random generators: what is drawn for a batch depends only on (seed, rank, epoch, batch).

A run that resumes within an epoch therefore draws the same numbers as an uninterrupted one, with any number of
DataLoader workers, and no generator state has to be saved.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

# Streams of a batch: augmentation in DataLoader workers; erasing, mixing and dropout in the training process.
AUGMENTATION, STEP = range(2)


def derived_seed(*numbers: int) -> int:
    """A seed of 63 bits for these numbers, each at least 0; those of neighboring numbers are unrelated."""
    state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]
    return int(state >> 1)  # torch accepts signed 64-bit integers


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """Generator of an epoch."""
    return torch.Generator().manual_seed(derived_seed(seed, epoch))


def batch_seed(stream: int, seed: int, rank: int, epoch: int, batch: int) -> int:
    """Seed of one batch of one process in the stream AUGMENTATION or STEP."""
    return derived_seed(seed, stream, rank, epoch, batch)


def seed_training_step(seed: int, rank: int, epoch: int, batch: int) -> None:
    """Seed the global generators of Python, NumPy and torch, on every device, for one training batch of one process.

    Must be called before random erasing, mixing and dropout. Lightning calls no callback that early; the data
    module's ``on_before_batch_transfer`` is its first hook in a step.
    """
    step_seed = batch_seed(STEP, seed, rank, epoch, batch)
    _seed_cpu(step_seed)
    # For a GPU that is not in use, torch.manual_seed would queue a call with its stack trace in every step.
    if torch.cuda.is_initialized() or torch.backends.mps.is_available():
        torch.manual_seed(step_seed)


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
