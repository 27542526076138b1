"""Cluttered translated digits: images of a digit among fragments of other digits, rendered in memory."""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from noah_lightning.config.choices import DigitsSettings
from noah_lightning.data.datamodule import ImageDataModule, Split

Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]

VAL_PART = 0.2
# Streams of one seed: the split itself, then the images of each split.
_SPLITTING, TRAIN, VAL = range(3)


@dataclass(frozen=True)
class Layout:
    """Positions of the digit and the F fragments of N images, as (row, column) in pixels."""

    source: Ints  # (N,) glyph shown
    digit_at: Ints  # (N, 2) its top left corner on the canvas
    fragment_source: Ints  # (N, F) glyphs the fragments are cut from
    cut_at: Ints  # (N, F, 2) corner of the cut, within the glyph
    fragment_at: Ints  # (N, F, 2) corner of the fragment on the canvas


def split_sources(labels: Ints, seed: int) -> tuple[Ints, Ints]:
    """Sorted indices of the source images for training and for validation, which gets a fifth of each class."""
    rng = np.random.default_rng([seed, _SPLITTING])
    val = []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        val.append(members[: round(VAL_PART * len(members))])
    val_index = np.sort(np.concatenate(val))
    return np.setdiff1d(np.arange(len(labels)), val_index), val_index


def draw_layout(pool: Ints, count: int, stream: int, settings: DigitsSettings) -> Layout:
    """A random layout of ``count`` images that use only the glyphs in ``pool``, (P,) indices, at least 2.

    Image i depends only on (seed, stream, i) and shows glyph ``pool[i % P]``. Fragments come from other glyphs.
    """
    image, digit, fragment = settings.image_size, settings.digit_size, settings.fragment_size
    drawn = np.empty((count, 2 + 5 * settings.num_fragments))  # uniform in [0, 1)
    for i in range(count):
        drawn[i] = np.random.default_rng([settings.seed, stream, i]).random(drawn.shape[1])
    of_digit, of_fragments = drawn[:, :2], drawn[:, 2:].reshape(count, settings.num_fragments, 5)

    shown = np.arange(count) % len(pool)  # (N,)
    other = choose(of_fragments[:, :, 0], len(pool) - 1)  # (N, F)
    other += other >= shown[:, None]  # skip the glyph shown
    return Layout(
        source=pool[shown],
        digit_at=choose(of_digit, image - digit + 1),
        fragment_source=pool[other],
        cut_at=choose(of_fragments[:, :, 1:3], digit - fragment + 1),
        fragment_at=choose(of_fragments[:, :, 3:5], image - fragment + 1),
    )


def choose(uniform: NDArray[np.float64], options: int) -> Ints:
    """Integers 0 to ``options`` - 1, from uniform random numbers in [0, 1)."""
    return (uniform * options).astype(np.int64)


def render(glyphs: Bytes, layout: Layout, image_size: int, fragment_size: int) -> Bytes:
    """Render the N images of a layout, (N, image_size, image_size), from glyphs (G, D, D) with background 0.

    Where parts overlap, the brighter pixel is kept.
    """
    canvas = np.zeros((len(layout.source), image_size, image_size), dtype=np.uint8)
    paste(canvas, glyphs[layout.source], layout.digit_at)
    for k in range(layout.fragment_source.shape[1]):
        rows, columns = _pixels(layout.cut_at[:, k], fragment_size)
        fragments = glyphs[layout.fragment_source[:, k, None, None], rows, columns]  # (N, f, f)
        paste(canvas, fragments, layout.fragment_at[:, k])
    return canvas


def paste(canvas: Bytes, patches: Bytes, at: Ints) -> None:
    """Paste patch n (d, d) onto canvas n at (row, column) ``at[n]``, in place."""
    where = np.arange(len(canvas))[:, None, None], *_pixels(at, patches.shape[1])
    canvas[where] = np.maximum(canvas[where], patches)


def _pixels(at: Ints, size: int) -> tuple[Ints, Ints]:
    """Rows (N, size, 1) and columns (N, 1, size) of squares whose top left corners are ``at`` (N, 2)."""
    side = np.arange(size)
    return at[:, 0, None, None] + side[:, None], at[:, 1, None, None] + side


class DigitsDataset:
    """Rendered images: uint8 (N, H, W), gray, and their labels int64 (N,), 0 to 9."""

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
    """scikit-learn's digits, enlarged bilinearly: uint8 (1797, digit_size, digit_size), labels (1797,)."""
    from sklearn.datasets import load_digits  # slow to import

    bunch = load_digits()
    small = torch.from_numpy(bunch.images)[:, None] / 16  # (1797, 1, 8, 8), white is 1
    large = interpolate(small, size=(digit_size, digit_size), mode="bilinear", align_corners=False)
    return (large[:, 0] * 255).round().to(torch.uint8).numpy(), bunch.target.astype(np.int64)


class DigitsDataModule(ImageDataModule):
    """Cluttered translated digits, rendered once in memory; image i of a split depends only on (seed, split, i)."""

    Settings = DigitsSettings
    settings: DigitsSettings

    def layout(self, split: Split) -> Layout:
        """Where the digit and the fragments of each image of a split are."""
        settings = self.settings
        train, val = split_sources(load_glyphs(settings.digit_size)[1], settings.seed)
        if split == "train":
            return draw_layout(train, settings.train_images, TRAIN, settings)
        return draw_layout(val, settings.val_images, VAL, settings)

    def build(self, split: Split) -> DigitsDataset:
        settings, layout = self.settings, self.layout(split)
        glyphs, labels = load_glyphs(settings.digit_size)
        images = render(glyphs, layout, settings.image_size, settings.fragment_size)
        return DigitsDataset(torch.from_numpy(images), torch.from_numpy(labels[layout.source]))
