"""Inputs of the heads of a sweep, batch by batch: stored features, or features computed for every batch."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from noah_lightning.data.datamodule import ImageDataModule
from noah_lightning.data.loader import seed_training_step
from noah_lightning.models.feature_store import Extract, Features, in_order

Inputs = tuple[Tensor, ...]
Batch = tuple[Inputs, Tensor]


@dataclass
class Source(ABC):
    """Inputs of the heads and labels, in the order of ``data``."""

    data: ImageDataModule

    def batches(self) -> int:
        """Number of training batches in an epoch."""
        return len(self.data.train_batches(0, 0))

    @abstractmethod
    def train(self, epoch: int, first: int) -> Iterator[Batch]:
        """Training batches of an epoch from batch ``first`` on."""

    @abstractmethod
    def validation(self) -> Iterator[Batch]:
        """Validation images, in order."""


@dataclass
class StoredFeatures(Source):
    """Reads features from memory-mapped files."""

    features: dict[str, Features]  # by split

    def train(self, epoch: int, first: int) -> Iterator[Batch]:
        for _, numbers in self.data.train_batches(epoch, 0, first):
            yield self.features["train"].batch(numbers)

    def validation(self) -> Iterator[Batch]:
        size, count = self.data.batch_size, len(self.features["val"])
        for start in range(0, count, size):
            yield self.features["val"].batch(range(start, min(start + size, count)))


@dataclass
class ComputedFeatures(Source):
    """Computes the features of each batch, for augmented images and for features too large to store."""

    normalize: Callable[[Tensor], Tensor]  # images uint8 (B, 3, H, W) to float32 on the device
    features: Extract  # these to the inputs of a head

    def train(self, epoch: int, first: int) -> Iterator[Batch]:
        for number, (images, labels) in enumerate(self.data.train_loader(epoch, first), start=first):
            seed_training_step(self.data.seed, 0, epoch, number)
            yield self.features(self.data.on_device.erase(self.normalize(images))), labels

    def validation(self) -> Iterator[Batch]:
        for images, labels in in_order(self.data, self.data.val_dataset):
            yield self.features(self.normalize(images)), labels
