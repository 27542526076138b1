"""torchvision's ShuffleNetV2 as a timm-style model."""

from typing import Any

from timm.models import build_model_with_cfg, register_model
from torch import Tensor, nn
from torchvision.models import ShuffleNetV2 as TorchvisionShuffleNetV2

from noah_lightning.models.zoo.pretrained_cfg import untrained

default_cfgs = untrained("shufflenetv2_100", first_conv="conv1.0", classifier="fc")


class ShuffleNetV2(TorchvisionShuffleNetV2):
    """Images (B, 3, H, W) → logits (B, K), with timm's way to take the classifier and the pooling off."""

    def __init__(
        self,
        stages_repeats: list[int],
        stages_out_channels: list[int],
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        assert in_chans == 3, "torchvision's ShuffleNetV2 takes images of 3 channels"
        super().__init__(stages_repeats, stages_out_channels)
        self.num_features = self.head_hidden_size = stages_out_channels[-1]
        self.head_drop = nn.Dropout(drop_rate)
        self.reset_classifier(num_classes, global_pool)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier for ``num_classes`` (0: none), and pooling ``avg`` or ``""``."""
        if global_pool is not None:
            assert global_pool in ("avg", ""), "pooling is avg or none"
            self.global_pool = global_pool
        self.num_classes = num_classes
        self.fc = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def get_classifier(self) -> nn.Module:
        return self.fc

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.conv1(x))  # (B, 24, H/4, W/4)
        return self.conv5(self.stage4(self.stage3(self.stage2(x))))  # (B, C, H/32, W/32)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        if not self.global_pool:
            return x
        x = x.mean((2, 3))  # (B, C, H/32, W/32) -> (B, C)
        return x if pre_logits else self.fc(self.head_drop(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


@register_model
def shufflenetv2_100(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ShuffleNetV2 ×1.0 (arXiv 1807.11164)."""
    kwargs = {"stages_repeats": [4, 8, 4], "stages_out_channels": [24, 116, 232, 464, 1024], **kwargs}
    return build_model_with_cfg(ShuffleNetV2, "shufflenetv2_100", pretrained, **kwargs)
