"""The usual transforms for photographs: PIL image in, uint8 (3, S, S) out.

Pixel for pixel those of torchvision's ImageNet reference up to its ToTensor. Conversion to float and
normalisation are left to the device, see ``ImageDataModule.normalize``.
"""

import math

from torchvision.transforms import InterpolationMode, v2

BILINEAR = InterpolationMode.BILINEAR


def train_transform(image_size: int) -> v2.Compose:
    """A random part of the photograph, scaled to ``image_size`` pixels square, mirrored half of the time."""
    return v2.Compose(
        [
            v2.RandomResizedCrop(image_size, interpolation=BILINEAR, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
        ]
    )


def eval_transform(image_size: int, crop_ratio: float) -> v2.Compose:
    """The central ``image_size`` pixels square, the shorter side being scaled to image_size / crop_ratio."""
    return v2.Compose(
        [
            v2.Resize(math.floor(image_size / crop_ratio), interpolation=BILINEAR, antialias=True),
            v2.CenterCrop(image_size),
            v2.PILToTensor(),
        ]
    )
