"""Mixed batches: mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899)."""

from timm.data.mixup import Mixup
from torch import Tensor

from noah_lightning.config.schema import MixingSettings
from noah_lightning.errors import ConfigError


class BatchMixing:
    """timm's mixup and CutMix in ``batch`` mode: one draw per batch; image i is mixed with image B - 1 - i.

    It draws from NumPy's global generator, which :func:`~noah_lightning.data.loader.seed_training_step` seeds.

    Args:
        settings: with mixup, CutMix or both.
        num_classes: K.
        label_smoothing: share of the soft targets that is spread over all classes.
    """

    def __init__(self, settings: MixingSettings, num_classes: int, label_smoothing: float) -> None:
        self._mixup = Mixup(
            mixup_alpha=settings.mixup,
            cutmix_alpha=settings.cutmix,
            prob=1.0,
            switch_prob=settings.switch,
            mode="batch",
            label_smoothing=label_smoothing,
            num_classes=num_classes,
        )

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mixed images (B, 3, H, W) and soft targets (B, K) from images and labels (B,), which are not changed.

        Raises:
            ConfigError: the number of images is odd; the one in the middle would have no partner.
        """
        check_even(len(images))
        return self._mixup(images.clone(), labels)  # timm mixes in place


def check_even(images: int) -> None:
    """Raise ConfigError for an odd number of images in a batch."""
    if images % 2:
        raise ConfigError(
            f"recipe.mixing needs an even number of images per batch, got {images}; change recipe.batch_size, "
            "or set recipe.mixing.mixup=0 recipe.mixing.cutmix=0"
        )
