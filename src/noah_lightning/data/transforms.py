"""What happens to training photographs, as ``recipe.augment`` words it."""

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from timm.data import auto_augment, create_transform
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2.functional import resized_crop

from noah_lightning.config.choices import AugmentSettings
from noah_lightning.data.image import Picture

INTERPOLATIONS = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}
Transform = Callable[[Picture], Tensor]


class RandomCrop(RandomResizedCropAndInterpolation):
    """timm's random crop, of a picture that is decoded for it; its draws, from ``random``, are timm's."""

    def __call__(self, picture: Picture) -> Tensor:
        """uint8 (3, S, S)."""
        extent = torch.empty(()).expand(3, picture.height, picture.width)  # no pixels: timm asks for its size
        top, left, height, width = self.get_params(extent, self.scale, self.ratio)
        height, width = max(height, 1), max(width, 1)  # of a picture of few pixels, timm's box may hold none
        top, left = min(top, picture.height - height), min(left, picture.width - width)
        image = picture.pixels(top + height)  # (3, top + height, W)
        kind = random.choice(self.interpolation) if isinstance(self.interpolation, tuple) else self.interpolation
        scaled: Tensor = resized_crop(image, top, left, height, width, list(self.size), kind, antialias=True)
        return scaled


def train_transform(image_size: int, augment: AugmentSettings, mean: Sequence[float]) -> Transform:
    """A random part of the photograph, scaled to ``image_size`` pixels square, mirrored half of the time.

    RandAugment or else colour jitter follow where ``augment`` asks for them: timm's, on a PIL image. Draws from
    ``random``, numpy and torch.

    Args:
        image_size: S, in pixels.
        augment: all but its ``erasing`` and ``repeats``.
        mean: of red, green and blue, white is 1: the colour of the corners that RandAugment lays bare.
    """
    crop = RandomCrop(image_size, (0.08, 1.0), augment.crop_aspect, augment.interpolation)
    _, colours, to_bytes = create_transform(
        image_size,
        is_training=True,
        use_prefetcher=True,  # timm's way to say: end in bytes, neither normalised nor erased
        separate=True,
        interpolation=augment.interpolation,
        auto_augment=augment.rand_augment,
        color_jitter=augment.color_jitter,
        mean=tuple(mean),
    )
    steps = [crop, v2.RandomHorizontalFlip(0.5)]
    if augment.rand_augment or augment.color_jitter:
        _let_posterize_keep_nothing(colours)
        steps += [v2.ToPILImage(), colours, to_bytes]
    transform: Transform = v2.Compose(steps)
    return transform


def _let_posterize_keep_nothing(colours: v2.Compose) -> None:
    """timm's strongest posterisation keeps 0 bits of 8. PIL gave black for that until version 13, which refuses."""
    for step in colours.transforms:
        for op in getattr(step, "ops", ()):  # of RandAugment
            if op.aug_fn is auto_augment.posterize:
                op.aug_fn = _posterize


def _posterize(image: Image.Image, bits: int, **options: Any) -> Image.Image:
    if bits == 0:
        return Image.new(image.mode, image.size)
    posterized: Image.Image = auto_augment.posterize(image, bits, **options)
    return posterized


def eval_transform(image_size: int, crop_ratio: float, interpolation: str) -> Transform:
    """The central ``image_size`` pixels square, the shorter side being scaled to image_size / crop_ratio.

    Args:
        image_size: S, in pixels.
        crop_ratio: in (0, 1].
        interpolation: one of INTERPOLATIONS.
    """
    return v2.Compose(
        [
            Picture.pixels,
            v2.Resize(
                math.floor(image_size / crop_ratio), interpolation=INTERPOLATIONS[interpolation], antialias=True
            ),
            v2.CenterCrop(image_size),
        ]
    )


class OnDevice:
    """Bytes to normalised floats, and rectangles of noise.

    Args:
        mean: of red, green and blue, on the scale where white is 1.
        std: likewise.
        erasing: probability that a part of an image is erased.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], erasing: float = 0.0) -> None:
        self.mean, self.std, self.erasing = mean, std, erasing
        # Copied to each device once: a copy per step would make it wait.
        self._scale: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self._erasing: dict[torch.device, RandomErasing] = {}

    def normalize(self, images: Tensor) -> Tensor:
        """(x/255 - mean) / std.

        Args:
            images: uint8 (..., 3, H, W) on any device.

        Returns:
            float32 (..., 3, H, W) on the same device.
        """
        if images.device not in self._scale:
            self._scale[images.device] = (
                torch.tensor(self.mean, device=images.device).mul(255)[:, None, None],  # (3, 1, 1)
                torch.tensor(self.std, device=images.device).mul(255)[:, None, None],
            )
        mean, std = self._scale[images.device]
        return images.float().sub_(mean).div_(std)

    def erase(self, images: Tensor) -> Tensor:
        """Fills a rectangle of each image with standard normal noise, with probability ``erasing``.

        Args:
            images: normalised, float (B, 3, H, W) on any device; changed in place.
        """
        if not self.erasing:
            return images
        if images.device not in self._erasing:
            self._erasing[images.device] = RandomErasing(
                self.erasing, mode="pixel", max_count=1, device=images.device
            )
        erased: Tensor = self._erasing[images.device](images)
        return erased
