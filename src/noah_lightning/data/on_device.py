"""What happens to a batch of images once it is on the training device."""

import torch
from timm.data.random_erasing import RandomErasing
from torch import Tensor


class OnDevice:
    """Bytes to normalised floats, and rectangles of noise.

    Args:
        mean: of red, green and blue, on the scale where white is 1.
        std: likewise.
        erasing: probability that a part of an image is erased.
    """

    def __init__(
        self, mean: tuple[float, float, float], std: tuple[float, float, float], erasing: float = 0.0
    ) -> None:
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
