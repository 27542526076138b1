"""Training batches: what is drawn for them, their images, and replacements for unreadable images.

What is drawn for a batch depends only on (seed, rank, epoch, batch). A run that resumes within an epoch therefore
draws the same numbers as an uninterrupted one, with any number of DataLoader workers, and no generator state has to
be saved.
"""

import logging
import random
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, default_collate

from noah_lightning.data.samplers import EpochShuffle, derived_seed
from noah_lightning.errors import DataError

log = logging.getLogger("noah_lightning")

# Streams of a batch: augmentation in DataLoader workers; erasing, mixing and dropout in the training process.
AUGMENTATION, STEP = range(2)

Drawn = tuple[int, list[int]]  # a batch before loading: seed of its augmentation, indices of its images
Label = int | Tensor  # class, or of multi-label data float32 (K,), 1 for each class in the image
Unreadable = dict[int, str]  # errors of unreadable images, by index


def seed_training_step(seed: int, rank: int, epoch: int, batch: int) -> None:
    """Seed the global generators of Python, NumPy and torch, on every device, for one training batch of one process.

    Must be called before random erasing, mixing and dropout. Lightning calls no callback that early; the data
    module's ``on_before_batch_transfer`` is its first hook in a step.
    """
    step_seed = derived_seed(seed, STEP, rank, epoch, batch)
    seed_cpu(step_seed)
    # For a GPU that is not in use, torch.manual_seed would queue a call with its stack trace in every step.
    if torch.cuda.is_initialized() or torch.backends.mps.is_available():
        torch.manual_seed(step_seed)


def seed_cpu(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch on the CPU."""
    random.seed(seed)
    np.random.seed([seed >> 32, seed & 0xFFFFFFFF])
    torch.default_generator.manual_seed(seed)


class EpochBatches(BatchSampler):
    """Batch sampler of an epoch, which yields each batch with the seed of its augmentation.

    Lightning sets the epoch of ``sampler``. The first pass starts with batch ``first``, above 0 if a run resumes
    within an epoch; the length is that of a complete epoch.
    """

    def __init__(self, sampler: EpochShuffle, batch_size: int, drop_last: bool, first: int = 0) -> None:
        super().__init__(sampler, batch_size, drop_last)
        self.order, self.first = sampler, first

    def __iter__(self) -> Iterator[Drawn]:  # type: ignore[override]  # not only the images
        epoch, first = self.order.epoch, self.first
        self.first = 0
        for batch, images in islice(enumerate(super().__iter__()), first, None):
            yield derived_seed(self.order.seed, AUGMENTATION, self.order.rank, epoch, batch), images


class DrawnImages:
    """Data set that loads whole batches, each augmented from its own seed, in any process.

    Up to ``max_unreadable`` unreadable images are replaced by the next readable one, which uses the same random
    draws; with 0 the first one raises its own error.
    """

    def __init__(self, images: Any, max_unreadable: int = 0) -> None:
        self.images, self.max_unreadable = images, max_unreadable

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, batch: Drawn) -> tuple[Tensor, Tensor, Unreadable]:
        """Images, labels and errors of a batch; called by torch's DataLoader."""
        seed, numbers = batch
        unreadable: Unreadable = {}
        with isolate_rng(include_cuda=False):
            seed_cpu(seed)
            samples = [self._readable(number, unreadable) for number in numbers]
        images, labels = default_collate(samples)
        return images, labels, unreadable

    def _readable(self, number: int, unreadable: Unreadable) -> tuple[Tensor, Label]:
        while True:
            try:
                sample: tuple[Tensor, Label] = self.images[number]
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
