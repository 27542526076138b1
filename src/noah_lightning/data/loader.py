"""Loading of training batches, with replacements for unreadable images."""

import logging
from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from noah_lightning.data.samplers import Drawn, EpochBatches
from noah_lightning.data.seeding import drawing_from
from noah_lightning.errors import DataError

log = logging.getLogger("noah_lightning")

Unreadable = dict[int, str]  # errors of unreadable images, by index


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

    def __getitems__(self, batch: Drawn) -> tuple[Tensor, Tensor, Unreadable]:
        """Images, labels and errors of a batch; called by torch's DataLoader."""
        seed, numbers = batch
        unreadable: Unreadable = {}
        with drawing_from(seed):
            samples = [self._readable(number, unreadable) for number in numbers]
        images, labels = default_collate(samples)
        return images, labels, unreadable

    def _readable(self, number: int, unreadable: Unreadable) -> tuple[Tensor, int]:
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
        # The data set does not inherit from Dataset, and has collated its batches.
        super().__init__(dataset, batch_sampler=batches, collate_fn=tuple, **arguments)  # type: ignore[arg-type]
        self.max_unreadable = dataset.max_unreadable
        self.unreadable: Unreadable = {}

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:  # type: ignore[override]  # a generator is all it takes
        for images, labels, unreadable in super().__iter__():
            for number in unreadable.keys() - self.unreadable.keys():
                self.unreadable[number] = unreadable[number]
                log.warning("%s; it is replaced by the next one", unreadable[number])
            check_count(self.unreadable, self.max_unreadable)
            yield images, labels


def check_count(unreadable: Unreadable, most: int) -> None:
    """Raise DataError for more than ``most`` unreadable training images."""
    if len(unreadable) > most:
        raise DataError(
            f"{len(unreadable)} unreadable training images, and data.max_unreadable={most}; noah check-data lists "
            f"all of them; the last one: {list(unreadable.values())[-1]}"
        )
