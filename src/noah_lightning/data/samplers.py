"""Samplers: the order in which one process visits the training images of an epoch."""

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from timm.data.distributed_sampler import RepeatAugSampler
from torch.utils.data import Sampler


class EpochShuffle(Sampler[int]):
    """A permutation of ``range(length)`` per epoch, of which rank r of W takes the images r, r + W, r + 2W, ...

    So the batches of one step together hold what a single process would see. The order is a pure function of (seed,
    epoch, rank, world_size). All processes have the same number of images: if ``world_size`` does not divide
    ``length``, the first images are repeated.

    Lightning sets the epoch through :meth:`set_epoch`; without Lightning each pass over the sampler is one epoch.
    Lightning starts the DataLoader workers before it sets the epoch, so a resumed run must pass its first ``epoch``.
    """

    def __init__(self, length: int, seed: int, epoch: int = 0, rank: int = 0, world_size: int = 1) -> None:
        self.length, self.seed = length, seed
        self.epoch = epoch  # of the next pass
        self.rank, self.world_size = rank, world_size

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next pass."""
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(self.length / self.world_size)

    def __iter__(self) -> Iterator[int]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        return iter(self.order(epoch))

    def order(self, epoch: int) -> list[int]:
        """Indices of the images in ``epoch``."""
        images = torch.randperm(self.length, generator=epoch_generator(self.seed, epoch))
        own = torch.arange(self.rank, len(self) * self.world_size, self.world_size)
        return images[own % self.length].tolist()


class EpochRepeat(EpochShuffle):
    """Repeated augmentation (timm's): each image of the permutation is drawn ``repeats`` times in a row.

    The length of an epoch does not change, so it visits about one in ``repeats`` images. From 256 images on, the
    length is rounded down to a multiple of 256, as in DeiT's code, which also defines the share of each process.
    ``share`` is the epoch, rank and world size.
    """

    def __init__(self, length: int, seed: int, repeats: int, **share: int) -> None:
        super().__init__(length, seed, **share)
        self.sampler = RepeatAugSampler(range(length), self.world_size, self.rank, num_repeats=repeats)

    def __len__(self) -> int:
        return len(self.sampler)

    def order(self, epoch: int) -> list[int]:
        self.sampler.epoch = derived_seed(self.seed, epoch)  # only used as the seed of its generator
        return list(self.sampler)


class ShardShuffle(EpochShuffle):
    """Order that reads shard by shard.

    Each epoch shuffles the shards, and the images within each shard. Rank r of W takes the r-th of W equal pieces of
    this sequence, so it shares at most its first and its last shard with other processes. Each image is then moved
    back by a random distance of up to ``mix`` shards, so about ``mix`` + 1 shards are in use at a time.

    This is not a uniform permutation: images of one shard come up in the same part of an epoch. Their classes are
    mixed nevertheless, because ``noah pack`` shuffles the images before it divides them into shards.

    Args:
        ends: int64 (S,), cumulative number of images at the end of each shard.
        mix: distance in shards, at least 0; with 0 one shard follows the other.
        repeats: times an image is drawn in a row; an epoch keeps its length, so it visits fewer images and shards.
        share: epoch, rank and world size.
    """

    def __init__(self, ends: NDArray[np.int64], seed: int, mix: int, repeats: int = 1, **share: int) -> None:
        self.ends: list[int] = ends.tolist()
        super().__init__(self.ends[-1], seed, **share)
        self.mix, self.repeats = mix, repeats

    def order(self, epoch: int) -> list[int]:
        generator = epoch_generator(self.seed, epoch)
        starts = [0, *self.ends[:-1]]
        images = torch.cat(  # (N,), the same in every process
            [
                starts[shard] + torch.randperm(self.ends[shard] - starts[shard], generator=generator)
                for shard in torch.randperm(len(self.ends), generator=generator).tolist()
            ]
        )
        places = torch.arange(len(self), dtype=torch.float64)
        own = images[(self.rank * len(self) + places.long()) % len(images)]
        distance = self.mix * len(images) / len(self.ends)
        later = places + distance * torch.rand(len(self), generator=generator, dtype=torch.float64)
        own = own[later.argsort(stable=True)]
        return own.repeat_interleave(self.repeats)[: len(self)].tolist()


def derived_seed(*numbers: int) -> int:
    """A seed of 63 bits for these numbers, each at least 0; those of neighboring numbers are unrelated."""
    state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]
    return int(state >> 1)  # torch accepts signed 64-bit integers


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """Generator of an epoch."""
    return torch.Generator().manual_seed(derived_seed(seed, epoch))
