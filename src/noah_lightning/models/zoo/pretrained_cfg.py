"""What timm wants to know of a model beside its code."""

from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD
from timm.models import DefaultCfg, generate_default_cfgs

IMAGENET = {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}
INCEPTION = {"mean": IMAGENET_INCEPTION_MEAN, "std": IMAGENET_INCEPTION_STD}


def untrained(*names: str, **settings: Any) -> dict[str, DefaultCfg]:
    """timm's ``default_cfgs`` for models of 224-pixel images without published weights on a hub."""
    common = {"num_classes": 1000, "input_size": (3, 224, 224), "pool_size": None, "crop_pct": 0.875, **IMAGENET}
    return generate_default_cfgs({f"{name}.untrained": {"url": "", **common, **settings} for name in names})
