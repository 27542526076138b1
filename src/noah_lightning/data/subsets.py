"""Subsets of labeled images: the held-out part of a training set, and the first images of each class."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from noah_lightning.errors import DataError, count

Ints = NDArray[np.int64]

_HOLDING_OUT = 3  # stream of data.seed; the digits use 0 to 2


class Subset:
    """The images ``numbers`` of a data set, in this order; the class names stay the same."""

    def __init__(self, images: Any, numbers: Ints) -> None:
        self.images, self.numbers = images, numbers
        self.classes: list[str] = images.classes

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        sample: tuple[Tensor, int] = self.images[int(self.numbers[index])]
        return sample

    @property
    def labels(self) -> Ints:
        """Label of each image."""
        return labels_of(self.images)[self.numbers]

    def file(self, index: int) -> Path | None:
        """File of an image, as of :func:`file_of`."""
        return file_of(self.images, int(self.numbers[index]))


def file_of(images: Any, index: int) -> Path | None:
    """The file of an image, if the data set has a method ``file(index)``."""
    return images.file(index) if hasattr(images, "file") else None


def labels_of(images: Any) -> Ints:
    """The label of each image: from ``images.labels``, one integer per image, or else by reading all images."""
    labels = np.asarray(getattr(images, "labels", ()))
    if labels.shape == (len(images),) and np.issubdtype(labels.dtype, np.integer):
        return labels.astype(np.int64)
    return np.array([images[index][1] for index in range(len(images))], np.int64)


def hold_out(images: Any, share: float, seed: int, multilabel: bool = False) -> tuple[Ints, Ints]:
    """Sorted numbers of the images that stay for training, and of those held out of it.

    Of each class the ``share`` is held out, rounded, and at least one image; of ``multilabel`` images it is the share
    of all. Which ones depends on the labels and on ``seed`` only. Raises DataError if a class has a single image, or
    none would stay.
    """
    labels = np.zeros(len(images), np.int64) if multilabel else labels_of(images)
    rng = np.random.default_rng([seed, _HOLDING_OUT])
    held = []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        number = max(1, round(share * len(members)))
        if number == len(members):
            has = f"and {images.classes[label]} has {count(number, 'image')}"
            if number == 1:
                raise DataError(f"data.holdout={share:g} needs two training images of each class, {has}: add some")
            raise DataError(f"data.holdout={share:g} leaves no training images, {has}: choose a smaller share")
        held.append(members[:number])
    held_out = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(labels)), held_out), held_out


def first_of_each_class(labels: Ints, number: int) -> Ints:
    """Sorted numbers of ``number`` images: the first of each class, equally many of each as far as it has them."""
    rank = np.empty_like(labels)  # of each image within its class
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        rank[members] = np.arange(len(members))
    return np.sort(np.lexsort((labels, rank))[:number])
