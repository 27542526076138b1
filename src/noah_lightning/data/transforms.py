"""The transforms for photographs: PIL image in, uint8 (3, S, S) out.

Pixel for pixel those of timm and of torchvision's ImageNet reference up to their ToTensor. Conversion to float,
normalisation and what has to follow it are left to the device, see ``ImageDataModule.on_after_batch_transfer``.
"""

import math
from collections.abc import Callable

from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from noah_lightning.data.augment import AugmentSettings

INTERPOLATIONS = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}
Transform = Callable[[Image.Image], Tensor]


def train_transform(image_size: int, augment: AugmentSettings, mean: tuple[float, float, float]) -> Transform:
    """A random part of the photograph, scaled to ``image_size`` pixels square, mirrored half of the time.

    RandAugment or else colour jitter follow where ``augment`` asks for them. Draws from ``random``, numpy and
    torch.

    Args:
        image_size: S, in pixels.
        augment: all but its ``erasing`` and ``repeats``.
        mean: of red, green and blue, white is 1: the colour of the corners that RandAugment lays bare.
    """
    transform: Transform = create_transform(
        image_size,
        is_training=True,
        use_prefetcher=True,  # timm's way to say: end in bytes, neither normalised nor erased
        scale=(0.08, 1.0),
        ratio=augment.crop_aspect,
        interpolation=augment.interpolation,
        hflip=0.5,
        auto_augment=augment.rand_augment,
        color_jitter=augment.color_jitter,
        mean=mean,
    )
    return transform


def eval_transform(image_size: int, crop_ratio: float, interpolation: str) -> Transform:
    """The central ``image_size`` pixels square, the shorter side being scaled to image_size / crop_ratio.

    Args:
        image_size: S, in pixels.
        crop_ratio: in (0, 1].
        interpolation: one of INTERPOLATIONS.
    """
    return v2.Compose(
        [
            v2.Resize(
                math.floor(image_size / crop_ratio), interpolation=INTERPOLATIONS[interpolation], antialias=True
            ),
            v2.CenterCrop(image_size),
            v2.PILToTensor(),
        ]
    )
