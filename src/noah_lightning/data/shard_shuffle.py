"""The order in which the training images of a pack are visited."""

import math
from collections.abc import Iterator

import torch
from numpy.typing import NDArray
from torch.utils.data import Sampler

from noah_lightning.data.shuffle import epoch_generator


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
        epoch: the first epoch, as for :class:`~noah_lightning.data.shuffle.EpochShuffle`.
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
