"""Image transforms for training (``recipe.augment``) and validation (``recipe.preprocess``)."""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from timm.data import auto_augment, create_transform
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2.functional import resized_crop, to_pil_image

from noah_lightning.config.choices import AugmentSettings
from noah_lightning.data.image import Picture

Transform = Callable[[Picture], Tensor]


class RandomCrop(RandomResizedCropAndInterpolation):
    """timm's random resized crop, decoding only the rows needed; it draws from ``random`` exactly as timm does."""

    def __call__(self, picture: Picture) -> Tensor:
        """uint8 (3, S, S)."""
        extent = torch.empty(()).expand(3, picture.height, picture.width)  # no pixels: timm only needs the size
        top, left, height, width = self.get_params(extent, self.scale, self.ratio)
        height, width = max(height, 1), max(width, 1)  # for tiny images timm's box may be empty
        top, left = min(top, picture.height - height), min(left, picture.width - width)
        image = picture.pixels(top + height)  # (3, top + height, W)
        kind = random.choice(self.interpolation) if isinstance(self.interpolation, tuple) else self.interpolation
        scaled: Tensor = resized_crop(image, top, left, height, width, list(self.size), kind, antialias=True)
        return scaled


def train_transform(image_size: int, augment: AugmentSettings, mean: Sequence[float]) -> Transform:
    """Random resized crop, horizontal flip with probability 1/2, then timm's RandAugment or color jitter.

    Draws from ``random``, numpy and torch. RandAugment fills empty corners with the RGB ``mean`` (white is 1).
    """
    crop = RandomCrop(image_size, (0.08, 1.0), augment.crop_aspect, augment.interpolation)
    _, color_ops, to_bytes = create_transform(
        image_size,
        is_training=True,
        use_prefetcher=True,  # end in bytes: no normalization, no erasing
        separate=True,
        interpolation=augment.interpolation,
        auto_augment=augment.rand_augment,
        color_jitter=augment.color_jitter,
        mean=tuple(mean),
    )
    steps = [crop, v2.RandomHorizontalFlip(0.5)]
    if augment.rand_augment or augment.color_jitter:
        _allow_posterize_to_zero_bits(color_ops)
        steps += [v2.ToPILImage(), color_ops, to_bytes]
    transform: Transform = v2.Compose(steps)
    return transform


def _allow_posterize_to_zero_bits(color_ops: v2.Compose) -> None:
    """Keep timm's strongest posterization, to 0 bits, working: PIL returned black until version 13, which raises."""
    for step in color_ops.transforms:
        for op in getattr(step, "ops", ()):  # of RandAugment
            if op.aug_fn is auto_augment.posterize:
                op.aug_fn = _posterize


def _posterize(image: Image.Image, bits: int, **options: Any) -> Image.Image:
    if bits == 0:
        return Image.new(image.mode, image.size)
    posterized: Image.Image = auto_augment.posterize(image, bits, **options)
    return posterized


def eval_transform(image_size: int, crop_ratio: float, interpolation: str) -> Transform:
    """Resize of the shorter side to image_size / crop_ratio pixels, then a central square of ``image_size`` pixels.

    ``crop_ratio`` is in (0, 1], and ``interpolation`` is "bilinear" or "bicubic".
    """
    resize = v2.Resize(math.floor(image_size / crop_ratio), InterpolationMode(interpolation), antialias=True)
    return v2.Compose([Picture.pixels, resize, v2.CenterCrop(image_size)])


def timm_transform(data_config: Mapping[str, Any]) -> Transform:
    """timm's own validation transform for what ``timm.data.resolve_data_config`` returns, up to the normalization."""
    prepare = create_transform(**data_config, is_training=False, use_prefetcher=True)  # ends in bytes
    return lambda picture: prepare(to_pil_image(picture.pixels()))


class OnDevice:
    """Normalization by mean and standard deviation (RGB, with white as 1) and random erasing on the device."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], erasing: float = 0.0) -> None:
        self.mean, self.std, self.erasing = mean, std, erasing
        # Created once per device, because a copy to it in each step would block.
        self._created: dict[torch.device, tuple[Tensor, Tensor, RandomErasing]] = {}

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor, RandomErasing]:
        """Mean and standard deviation (3, 1, 1) of bytes, and the erasing, on a device."""
        if device not in self._created:
            mean, std = (torch.tensor(each, device=device).mul(255)[:, None, None] for each in (self.mean, self.std))
            self._created[device] = mean, std, RandomErasing(self.erasing, mode="pixel", device=device)
        return self._created[device]

    def normalize(self, images: Tensor) -> Tensor:
        """(x / 255 - mean) / std: uint8 (..., 3, H, W) to float32 of the same shape on the same device."""
        mean, std, _ = self._on(images.device)
        return images.float().sub_(mean).div_(std)

    def erase(self, images: Tensor) -> Tensor:
        """Fill a rectangle of normalized images (B, 3, H, W) with noise, in place, with probability ``erasing``."""
        if not self.erasing:  # draws nothing
            return images
        erased: Tensor = self._on(images.device)[2](images)
        return erased
