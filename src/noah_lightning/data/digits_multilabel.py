"""Several digits on one canvas among fragments of others, rendered in memory; the label is the set of digits."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from noah_lightning.config.choices import DigitsMultilabelSettings
from noah_lightning.data.datamodule import ImageDataModule, Split
from noah_lightning.data.digits import (
    TRAIN,
    VAL,
    Bytes,
    Ints,
    choose,
    draw_layout,
    load_glyphs,
    paste,
    render,
    split_sources,
)

DIGITS = 10  # number of classes, and of the first stream that draws digits; lower ones draw fragments


def draw_digits(pool: Ints, count: int, stream: int, settings: DigitsMultilabelSettings) -> tuple[Ints, Ints]:
    """Glyphs (N, M), -1 for none, and corners (N, M, 2) of up to M digits in each of N = ``count`` images.

    Image i depends only on (seed, stream, i). It has 1 to M digits of ``pool``, as often each, at random in different
    cells of a grid, so that they never overlap.
    """
    most, size = settings.max_digits, settings.digit_size
    side = settings.image_size // size  # cells
    cell = settings.image_size // side  # pixels
    sources, corners = np.full((count, most), -1), np.zeros((count, most, 2), dtype=np.int64)
    for i in range(count):
        rng = np.random.default_rng([settings.seed, DIGITS + stream, i])
        shown = int(rng.integers(1, most + 1))
        sources[i, :shown] = pool[rng.integers(len(pool), size=shown)]
        places = rng.permutation(side * side)[:most]
        corners[i] = cell * np.stack([places // side, places % side], axis=1) + choose(
            rng.random((most, 2)), cell - size + 1
        )
    return sources, corners


class DigitSets:
    """Rendered images: uint8 (N, H, W), gray, and their labels float32 (N, 10), 1 for each digit in the image."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels
        self.classes = [str(digit) for digit in range(DIGITS)]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """(uint8 (3, H, W), label)"""
        return self.images[index].expand(3, -1, -1), self.labels[index]


class DigitsMultilabelDataModule(ImageDataModule):
    """Sets of digits, rendered once in memory; image i of a split depends only on (seed, split, i)."""

    Settings = DigitsMultilabelSettings
    settings: DigitsMultilabelSettings
    multilabel = True

    def build(self, split: Split) -> DigitSets:
        settings = self.settings
        glyphs, classes = load_glyphs(settings.digit_size)
        train, val = split_sources(classes, settings.seed)
        pool, count, stream = (
            (train, settings.train_images, TRAIN) if split == "train" else (val, settings.val_images, VAL)
        )
        sources, corners = draw_digits(pool, count, stream, settings)
        images = _render_all(glyphs, pool, sources, corners, stream, settings)
        labels = np.zeros((count, DIGITS), dtype=np.float32)
        rows, columns = np.nonzero(sources >= 0)
        labels[rows, classes[sources[rows, columns]]] = 1
        return DigitSets(torch.from_numpy(images), torch.from_numpy(labels))


def _render_all(
    glyphs: Bytes, pool: Ints, sources: Ints, corners: Ints, stream: int, settings: DigitsMultilabelSettings
) -> Bytes:
    """Fragments and digits, uint8 (N, H, W); where they overlap, the brighter pixel is kept."""
    blank = np.zeros_like(glyphs[:1])
    with_blank = np.concatenate([glyphs, blank])  # as glyph -1
    layout = draw_layout(pool, len(sources), stream, settings)  # of one digit among fragments
    nothing = np.full(len(sources), -1)
    images = render(with_blank, replace(layout, source=nothing), settings.image_size, settings.fragment_size)
    for k in range(settings.max_digits):
        paste(images, with_blank[sources[:, k]], corners[:, k])
    return images
