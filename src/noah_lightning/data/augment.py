"""What happens to training photographs, as ``recipe.augment`` words it."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from noah_lightning.checks import one_of, whole_number
from noah_lightning.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class AugmentSettings:
    """How training photographs are varied; nothing but crops and flips unless told otherwise.

    Attributes:
        crop_aspect: smallest and largest width / height of the random crop.
        interpolation: of the crop: ``bilinear``, ``bicubic``, or ``random`` (one of the two for each image).
        rand_augment: RandAugment in timm's notation, such as ``rand-m9-mstd0.5-inc1``; None: none.
        color_jitter: largest relative change of brightness, contrast and saturation; by timm's rule none beside
            RandAugment.
        erasing: probability that a rectangle of the image becomes noise.
        repeats: times an image is drawn in a row, each time augmented anew; an epoch keeps its length.

    Raises:
        ConfigError: a value out of its range.
    """

    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str = "bilinear"
    rand_augment: str | None = None
    color_jitter: float = 0.0
    erasing: float = 0.0
    repeats: int = 1

    def __post_init__(self) -> None:
        if not _is_rising_pair(self.crop_aspect):
            raise ConfigError(
                f"recipe.augment.crop_aspect={self.crop_aspect!r} must be 2 rising numbers above 0 (width / height)"
            )
        low, high = self.crop_aspect
        object.__setattr__(self, "crop_aspect", (low, high))  # YAML gives a list
        one_of("recipe.augment.interpolation", self.interpolation, ("bilinear", "bicubic", "random"))
        if self.rand_augment is not None and not _is_rand_augment(self.rand_augment):
            raise ConfigError(
                f"recipe.augment.rand_augment={self.rand_augment!r} must be null or RandAugment in timm's notation, "
                "such as rand-m9-mstd0.5-inc1"
            )
        if not _is_number(self.color_jitter) or self.color_jitter < 0:
            raise ConfigError(f"recipe.augment.color_jitter={self.color_jitter!r} must be a number of at least 0")
        if not _is_number(self.erasing) or not 0 <= self.erasing <= 1:
            raise ConfigError(f"recipe.augment.erasing={self.erasing!r} must be a number from 0 to 1")
        whole_number("recipe.augment.repeats", self.repeats, low=1)


def augment_settings(given: Mapping[str, Any]) -> AugmentSettings:
    """The group ``recipe.augment`` as the dataclass that describes it; what is left out has its default.

    Raises:
        ConfigError: no group, a setting that there is not, or a value out of its range.
    """
    if not isinstance(given, Mapping):
        raise ConfigError(f"recipe.augment={given!r} must be a group of settings; set the ones in it")
    known = [field.name for field in fields(AugmentSettings)]
    for name in given:
        if name not in known:
            raise ConfigError(f"there is no setting 'recipe.augment.{name}'{did_you_mean(str(name), known)}")
    return AugmentSettings(**given)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_rising_pair(values: object) -> bool:
    if not isinstance(values, list | tuple) or len(values) != 2 or not all(map(_is_number, values)):
        return False
    return 0 < values[0] <= values[1]  # equal: all crops have one shape


def _is_rand_augment(text: object) -> bool:
    """Whether timm builds RandAugment from it, every part of the text being used."""
    from timm.data.auto_augment import rand_augment_transform  # slow to import

    if not isinstance(text, str):
        return False
    # timm skips parts without a number, such as the "inc" of rand-m9-inc; t names a set of operations
    if not all(re.search(r"^t|\d", part) for part in text.split("-")[1:]):
        return False
    try:
        rand_augment_transform(text)
    except (AssertionError, ValueError):  # an unknown part; a number that is none
        return False
    return True
