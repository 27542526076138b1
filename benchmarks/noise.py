"""Data set of random images in memory, which take no time to load."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from noah_lightning.config.choices import DataSettings
from noah_lightning.data.datamodule import ImageDataModule, LabeledImages, Split


class NoiseImages:
    """``count`` random images, uint8 (3, S, S), of which ``different`` are distinct."""

    def __init__(self, size: int, count: int, classes: int, different: int = 256) -> None:
        self.classes = [str(number) for number in range(classes)]
        self.count = count
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randint(256, (different, 3, size, size), dtype=torch.uint8, generator=generator)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index % len(self.images)], index % len(self.classes)


class NoiseDataModule(ImageDataModule):
    """Random images for one epoch of ``batches`` training batches, loaded in the main process.

    Attributes:
        given_batches: if set, training batches to use instead of :meth:`loader`.
    """

    def __init__(self, size: int, batch: int, batches: int, classes: int) -> None:
        half = [0.5] * 3
        images = DataSettings(name="noise", num_classes=classes, mean=half, std=half, image_size=size)
        super().__init__(images.model_copy(update={"batch_size": batch, "num_workers": 0}))
        self.batches = batches
        self.given_batches: Any = None

    def build(self, split: Split) -> LabeledImages:
        batches = self.batches if split == "train" else 1
        return NoiseImages(self.image_size, batches * self.batch_size, self.num_classes)

    def loader(self) -> DataLoader[Any]:
        """The training batches, the same ones at each call."""
        return super().train_dataloader()

    def train_dataloader(self) -> Any:
        return self.loader() if self.given_batches is None else self.given_batches
