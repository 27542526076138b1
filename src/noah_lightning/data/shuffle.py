"""The order in which training images are visited."""

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Sampler


class EpochShuffle(Sampler[int]):
    """A new permutation of ``range(length)`` each epoch, a pure function of (seed, epoch).

    Being free of any generator's history, a run resumed at epoch 7 sees the order that the uninterrupted run
    saw at epoch 7. Lightning announces the epoch through :meth:`set_epoch`; without Lightning each pass over
    the sampler is one epoch.

    Args:
        length: number of images.
        seed: at least 0.
        epoch: the first epoch. Lightning starts the workers before it announces the epoch, so a resumed run
            must give it here.
    """

    def __init__(self, length: int, seed: int, epoch: int = 0) -> None:
        self.length = length
        self.seed = seed
        self.epoch = epoch

    def set_epoch(self, epoch: int) -> None:
        """The next pass is that of ``epoch``."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        generator = epoch_generator(self.seed, self.epoch)
        self.epoch += 1
        yield from torch.randperm(self.length, generator=generator).tolist()


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """A generator for one epoch; neighbouring seeds and epochs give unrelated streams."""
    state = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> 1))  # torch takes signed 64 bits
