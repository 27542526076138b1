"""Cluttered translated digits: a task that needs no download and asks a head to look in the right place.

Each image shows one of scikit-learn's 1797 hand-written digits somewhere on a canvas strewn with fragments of
other digits. A fifth of the hand-written digits is kept for validation, whole and as fragments.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from noah_lightning.checks import whole_number
from noah_lightning.data.clutter import TRAIN, VAL, Bytes, Ints, draw_layout, render, split_sources
from noah_lightning.data.module import ImageDataModule, Split


class DigitsDataset:
    """Rendered images.

    Args:
        images: uint8 (N, H, W), grey.
        labels: int64 (N,), 0 to 9.
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = images
        self.labels = labels
        self.classes = [str(digit) for digit in range(10)]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """(uint8 (3, H, W), label)"""
        return self.images[index].expand(3, -1, -1), int(self.labels[index])


@cache
def load_glyphs(digit_size: int) -> tuple[Bytes, Ints]:
    """The hand-written digits, bilinearly enlarged: uint8 (1797, digit_size, digit_size), labels (1797,)."""
    from sklearn.datasets import load_digits  # slow to import

    bunch = load_digits()
    small = torch.from_numpy(bunch.images)[:, None] / 16  # (1797, 1, 8, 8), white is 1
    large = interpolate(small, size=(digit_size, digit_size), mode="bilinear", align_corners=False)
    return (large[:, 0] * 255).round().to(torch.uint8).numpy(), bunch.target.astype(np.int64)


class DigitsDataModule(ImageDataModule):
    """Cluttered translated digits, rendered once in memory.

    Args, beyond those of :class:`ImageDataModule`:
        train_images: training images to render.
        val_images: validation images to render.
        digit_size: side of the digit shown, in pixels.
        num_fragments: fragments of other digits in each image.
        fragment_size: side of a fragment, in pixels.

    Image i of a split is a pure function of (seed, split, i).
    """

    def __init__(
        self,
        *,
        num_classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        image_size: int,
        batch_size: int,
        num_workers: int | None,
        seed: int,
        train_images: int = 8000,
        val_images: int = 2000,
        digit_size: int = 24,
        num_fragments: int = 8,
        fragment_size: int = 8,
    ) -> None:
        super().__init__(
            num_classes=num_classes,
            mean=mean,
            std=std,
            image_size=image_size,
            batch_size=batch_size,
            num_workers=num_workers,
            seed=seed,
        )
        self.train_images = whole_number("data.train_images", train_images, low=1)
        self.val_images = whole_number("data.val_images", val_images, low=1)
        self.digit_size = whole_number("data.digit_size", digit_size, low=8, high=self.image_size)
        self.num_fragments = whole_number("data.num_fragments", num_fragments, low=0)
        self.fragment_size = whole_number("data.fragment_size", fragment_size, low=1, high=self.digit_size)

    def build(self, split: Split) -> DigitsDataset:
        """Renders one split."""
        glyphs, labels = load_glyphs(self.digit_size)
        train_index, val_index = split_sources(labels, self.seed)
        layout = draw_layout(
            train_index if split == "train" else val_index,
            count=self.train_images if split == "train" else self.val_images,
            seed=self.seed,
            stream=TRAIN if split == "train" else VAL,
            image_size=self.image_size,
            digit_size=self.digit_size,
            num_fragments=self.num_fragments,
            fragment_size=self.fragment_size,
        )
        images = render(glyphs, layout, self.image_size, self.fragment_size)
        return DigitsDataset(torch.from_numpy(images), torch.from_numpy(labels[layout.source]))
