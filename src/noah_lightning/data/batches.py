"""Training batches: which images, and from which seed they are augmented."""

from collections.abc import Iterator
from typing import Any, Protocol

from torch import Tensor
from torch.utils.data import Sampler

from noah_lightning.data.randomness import Purpose, batch_seed, drawing_from

Drawn = tuple[int, list[int]]  # a batch before it is loaded: the seed of its augmentation, the numbers of its images


class EpochOrder(Protocol):
    """The images of this process, epoch by epoch."""

    coming: int  # the epoch of the next pass

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[int]: ...

    def set_epoch(self, epoch: int) -> None: ...


class EpochBatches(Sampler[Drawn]):
    """The batches of an epoch.

    Args:
        sampler: the images of this process; Lightning announces the epoch to it.
        batch_size: images in a batch.
        drop_last: leave out the last batch if it is shorter.
        seed: of the run.
        rank: number of this process.
        first: batch that the first pass begins with, where a run goes on in the middle of an epoch.
    """

    def __init__(
        self, sampler: EpochOrder, batch_size: int, drop_last: bool, seed: int, rank: int, first: int = 0
    ) -> None:
        self.sampler = sampler
        self.batch_size, self.drop_last = batch_size, drop_last
        self.seed, self.rank = seed, rank
        self.first = first

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        images = len(self.sampler)
        return images // self.batch_size if self.drop_last else -(-images // self.batch_size)

    def __iter__(self) -> Iterator[Drawn]:
        epoch, first = self.sampler.coming, self.first
        self.first = 0
        images = list(self.sampler)
        for batch in range(first, len(self)):
            seed = batch_seed(Purpose.AUGMENTATION, self.seed, self.rank, epoch, batch)
            yield seed, images[batch * self.batch_size : (batch + 1) * self.batch_size]


class DrawnImages:
    """A data set that is asked for whole batches, each of which draws from its own seed, in whatever process."""

    def __init__(self, images: Any) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, batch: Drawn) -> list[tuple[Tensor, int]]:
        """torch's loader calls this where there is one."""
        seed, numbers = batch
        with drawing_from(seed):
            return [self.images[number] for number in numbers]
