"""Training batches: their images, the seed of their augmentation, and replacements for unreadable images."""

import logging
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils.data import DataLoader, Sampler, default_collate

from noah_lightning.data.samplers import EpochOrder
from noah_lightning.data.seeding import Purpose, batch_seed, drawing_from
from noah_lightning.errors import DataError

log = logging.getLogger("noah_lightning")

Drawn = tuple[int, list[int]]  # a batch before loading: seed of its augmentation, indices of its images


class EpochBatches(Sampler[Drawn]):
    """Batch sampler of an epoch.

    Args:
        sampler: order of the images of this process; Lightning sets its epoch.
        batch_size: images per batch.
        drop_last: drop the last batch if it is incomplete.
        seed: seed of the run.
        rank: rank of this process.
        first: first batch of the first pass, above 0 if a run resumes within an epoch.
    """

    def __init__(
        self, sampler: EpochOrder, batch_size: int, drop_last: bool, seed: int, rank: int, first: int = 0
    ) -> None:
        self.sampler = sampler
        self.batch_size, self.drop_last = batch_size, drop_last
        self.seed, self.rank = seed, rank
        self.first = first

    def __len__(self) -> int:
        """Number of batches in a complete epoch."""
        images = len(self.sampler)
        return images // self.batch_size if self.drop_last else -(-images // self.batch_size)

    def __iter__(self) -> Iterator[Drawn]:
        epoch, first = self.sampler.coming, self.first
        self.first = 0
        images = list(self.sampler)
        for batch in range(first, len(self)):
            seed = batch_seed(Purpose.AUGMENTATION, self.seed, self.rank, epoch, batch)
            yield seed, images[batch * self.batch_size : (batch + 1) * self.batch_size]


class Loaded(NamedTuple):
    """A batch before collation: (image, label) pairs, and the errors of unreadable images by index."""

    samples: list[tuple[Tensor, int]]
    unreadable: dict[int, str]


class DrawnImages:
    """Data set that loads whole batches, each augmented from its own seed, in any process.

    An unreadable image is replaced by the next readable one, which uses its random draws.

    Args:
        images: the data set.
        max_unreadable: maximum number of unreadable images; with 0 the first one raises its own error.
    """

    def __init__(self, images: Any, max_unreadable: int = 0) -> None:
        self.images, self.max_unreadable = images, max_unreadable

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, batch: Drawn) -> Loaded:
        """Load a batch; called by torch's DataLoader."""
        seed, numbers = batch
        unreadable: dict[int, str] = {}
        with drawing_from(seed):
            return Loaded([self._readable(number, unreadable) for number in numbers], unreadable)

    def _readable(self, number: int, unreadable: dict[int, str]) -> tuple[Tensor, int]:
        while True:
            try:
                sample: tuple[Tensor, int] = self.images[number]
                return sample
            except DataError as error:
                if not self.max_unreadable:
                    raise
                unreadable[number] = str(error)
                check_count(unreadable, self.max_unreadable)  # before a whole folder of broken files is read
            number = (number + 1) % len(self.images)


class TrainLoader(DataLoader[tuple[Tensor, Tensor]]):
    """DataLoader of (images, labels) that logs each unreadable image once.

    Workers return the errors together with their batches, so the count is the same in every run.
    """

    def __init__(self, dataset: DrawnImages, batches: EpochBatches, **arguments: Any) -> None:
        # The data set does not inherit from Dataset.
        super().__init__(dataset, batch_sampler=batches, collate_fn=_collate, **arguments)  # type: ignore[arg-type]
        self.most = dataset.max_unreadable
        self.unreadable: dict[int, str] = {}

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:  # type: ignore[override]  # a generator is all it takes
        for images, labels, unreadable in super().__iter__():
            for number in unreadable.keys() - self.unreadable.keys():
                self.unreadable[number] = unreadable[number]
                log.warning("%s; it is replaced by the next one", unreadable[number])
            check_count(self.unreadable, self.most)
            yield images, labels


def check_count(unreadable: Mapping[int, str], most: int) -> None:
    """Raise DataError for more than ``most`` unreadable training images."""
    if len(unreadable) > most:
        raise DataError(
            f"{len(unreadable)} unreadable training images, and data.max_unreadable={most}; noah check-data lists "
            f"all of them; the last one: {list(unreadable.values())[-1]}"
        )


def _collate(loaded: Loaded) -> tuple[Tensor, Tensor, dict[int, str]]:
    images, labels = default_collate(loaded.samples)
    return images, labels, loaded.unreadable
