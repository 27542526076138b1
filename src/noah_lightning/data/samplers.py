"""The order in which training images are visited, and the batches they come in."""

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from timm.data.distributed_sampler import RepeatAugSampler
from torch.utils.data import Sampler


class EpochShuffle(Sampler[int]):
    """A new permutation of ``range(length)`` each epoch, a pure function of (seed, epoch).

    Of several processes, process r of W takes every W-th image from the r-th on, so that their batches of one step
    hold together what one process would see; where W does not divide the length, the first images fill up.

    Being free of any generator's history, a run resumed at epoch 7 sees the order that the uninterrupted run
    saw at epoch 7. Lightning announces the epoch through :meth:`set_epoch`; without Lightning each pass over
    the sampler is one epoch.

    Args:
        length: number of images.
        seed: at least 0.
        epoch: the first epoch. Lightning starts the workers before it announces the epoch, so a resumed run
            must give it here.
        rank, world_size: number of this process, and of all.
    """

    def __init__(self, length: int, seed: int, epoch: int = 0, rank: int = 0, world_size: int = 1) -> None:
        self.length = length
        self.seed = seed
        self.coming = epoch
        self.rank, self.world_size = rank, world_size

    def set_epoch(self, epoch: int) -> None:
        """The next pass is that of ``epoch``."""
        self.coming = epoch

    def __len__(self) -> int:
        return math.ceil(self.length / self.world_size)

    def __iter__(self) -> Iterator[int]:
        generator = epoch_generator(self.seed, self.coming)
        self.coming += 1
        order = torch.randperm(self.length, generator=generator)
        own = torch.arange(self.rank, len(self) * self.world_size, self.world_size)
        yield from order[own % self.length].tolist()


class EpochRepeat(RepeatAugSampler):
    """As :class:`EpochShuffle`, but each image is drawn ``repeats`` times in a row: repeated augmentation.

    An epoch keeps its length, so it visits about one in ``repeats`` images. From 256 images on the length is
    rounded down to a multiple of 256, as in DeiT's code. Processes share it as there.

    Args:
        length: number of images.
        seed: at least 0.
        repeats: at least 1.
        epoch, rank, world_size: as for :class:`EpochShuffle`.
    """

    def __init__(
        self, length: int, seed: int, repeats: int, epoch: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        super().__init__(range(length), num_replicas=world_size, rank=rank, num_repeats=repeats)
        self.seed = seed
        self.set_epoch(epoch)

    def set_epoch(self, epoch: int) -> None:
        """The next pass is that of ``epoch``."""
        self.coming = epoch
        self.epoch = epoch_seed(self.seed, epoch)  # timm seeds its generator with this, and uses it for nothing else

    def __iter__(self) -> Iterator[int]:
        order: Iterator[int] = super().__iter__()  # drawn at once, so that the next epoch may be set
        self.set_epoch(self.coming + 1)
        return order


def epoch_seed(seed: int, epoch: int) -> int:
    """A seed for one epoch, 63 bits; neighbouring seeds and epochs give unrelated ones."""
    state = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0]
    return int(state >> 1)  # torch takes signed 64 bits


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """A generator for one epoch."""
    return torch.Generator().manual_seed(epoch_seed(seed, epoch))


class ShardShuffle(Sampler[int]):
    """A new order each epoch that goes from shard to shard, a pure function of (seed, epoch, rank, world_size).

    An epoch draws an order of the shards and one of the images within each. Of several processes, process r of W
    takes the r-th of W equal pieces of this: it reads its own shards, of which it has only the first and the last in
    common with others; where W does not divide the number of images, the first ones fill up. Then each image is put
    back by a random distance of up to ``mix`` shards' worth of images, so about ``mix`` + 1 shards are in use at a
    time.

    This is no uniform permutation: what lies together in a shard comes up in the same part of an epoch. As
    ``noah pack`` shuffles the images before it cuts them into shards, that says nothing about their classes.

    Args:
        ends: int64 (S,), number of images up to the end of each shard.
        seed: at least 0.
        mix: in shards, at least 0; 0: one shard after the other.
        repeats: times an image is drawn in a row. An epoch keeps its length, so it ends after 1 / ``repeats`` of the
            images, and of the shards.
        epoch: the first epoch, as for :class:`~noah_lightning.data.samplers.EpochShuffle`.
        rank, world_size: number of this process, and of all.
    """

    def __init__(
        self,
        ends: NDArray,
        seed: int,
        mix: int,
        repeats: int = 1,
        epoch: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.ends = [int(end) for end in ends]
        self.seed, self.mix, self.repeats = seed, mix, repeats
        self.coming = epoch
        self.rank, self.world_size = rank, world_size

    def set_epoch(self, epoch: int) -> None:
        """The next pass is that of ``epoch``."""
        self.coming = epoch

    def __len__(self) -> int:
        return math.ceil(self.ends[-1] / self.world_size)

    def __iter__(self) -> Iterator[int]:
        generator = epoch_generator(self.seed, self.coming)
        self.coming += 1
        starts = [0, *self.ends[:-1]]
        order = torch.cat(  # (N,), drawn alike in every process
            [
                starts[shard] + torch.randperm(self.ends[shard] - starts[shard], generator=generator)
                for shard in torch.randperm(len(self.ends), generator=generator).tolist()
            ]
        )
        places = torch.arange(len(self), dtype=torch.float64)
        own = order[(self.rank * len(self) + places.long()) % len(order)]
        distance = self.mix * len(order) / len(self.ends)
        later = places + distance * torch.rand(len(self), generator=generator, dtype=torch.float64)
        own = own[later.argsort(stable=True)]
        yield from own.repeat_interleave(self.repeats)[: len(self)].tolist()
