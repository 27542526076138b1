"""The paper's convolutional networks that timm lacks: MobileNetV3-Small and ShuffleNetV2."""

from torch import Tensor, nn
from torchvision.models import ShuffleNetV2 as TorchvisionShuffleNetV2
from torchvision.ops import Conv2dNormActivation

from noah_lightning.models.zoo import TimmStyleModel, register

# kernel, expansion width, output width, squeeze-and-excitation, activation, stride
_BLOCKS = (
    (3, 16, 16, True, nn.ReLU, 2),
    (3, 72, 24, False, nn.ReLU, 2),
    (3, 88, 24, False, nn.ReLU, 1),
    (5, 96, 40, True, nn.Hardswish, 2),
    (5, 240, 40, True, nn.Hardswish, 1),
    (5, 240, 40, True, nn.Hardswish, 1),
    (5, 120, 48, True, nn.Hardswish, 1),
    (5, 144, 48, True, nn.Hardswish, 1),
    (5, 288, 96, True, nn.Hardswish, 2),
    (5, 576, 96, True, nn.Hardswish, 1),
    (5, 576, 96, True, nn.Hardswish, 1),
)
_STEM, _LAST, _HIDDEN = 16, 576, 1280


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate that sees the mean of all."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduce = nn.Linear(width, width // 4, bias=False)
        self.expand = nn.Linear(width // 4, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.expand(self.reduce(x.mean((2, 3))).relu())  # (B, C, H, W) -> (B, C)
        return x * nn.functional.hardsigmoid(gate)[:, :, None, None]


class InvertedResidual(nn.Sequential):
    """Expand, filter each channel, gate, project; added to its input where the shape stays."""

    def __init__(
        self, inputs: int, kernel: int, width: int, outputs: int, gated: bool, act: type[nn.Module], stride: int
    ) -> None:
        super().__init__(
            nn.Conv2d(inputs, width, 1, bias=False),
            nn.BatchNorm2d(width),
            act(),
            nn.Conv2d(width, width, kernel, stride, kernel // 2, groups=width, bias=False),
            nn.BatchNorm2d(width),
            SqueezeExcite(width) if gated else nn.Identity(),
            act(),
            nn.Conv2d(width, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x) if self.residual else super().forward(x)


class MobileNetV3Small(TimmStyleModel):
    """The paper's MobileNetV3-Small: images (B, 3, H, W) → logits (B, K).

    It has 2.94 M parameters; timm's model of this name has 2.54 M. It differs in its squeeze-and-excitation (before
    the activation, without biases), in the first block, which expands too, and in a wider last layer. The last
    convolution comes after pooling; with ``global_pool=""`` it runs on every position of the map, as in the official
    model with NOAH. Source: the official release of NOAH (arXiv 2402.02377).
    """

    classifier_name = "classifier"

    def __init__(
        self, num_classes: int = 1000, in_chans: int = 3, global_pool: str = "avg", drop_rate: float = 0.0
    ) -> None:
        super().__init__()
        self.num_features, self.head_hidden_size = _LAST, _HIDDEN
        self.stem = Conv2dNormActivation(in_chans, _STEM, 3, 2, activation_layer=nn.Hardswish)
        widths = [_STEM, *(block[2] for block in _BLOCKS)]
        self.blocks = nn.Sequential(
            *(InvertedResidual(inputs, *block) for inputs, block in zip(widths, _BLOCKS, strict=False))
        )
        self.conv_last = Conv2dNormActivation(widths[-1], _LAST, 1, activation_layer=nn.Hardswish)
        self.conv_head = nn.Conv2d(_LAST, _HIDDEN, 1)
        self.act = nn.Hardswish()
        self.head_drop = nn.Dropout(drop_rate)
        self.reset_classifier(num_classes, global_pool)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.conv_last(self.blocks(self.stem(x)))  # (B, 576, H/32, W/32)

    def pool(self, x: Tensor) -> Tensor:
        if not self.global_pool:
            return self.act(self.conv_head(x))  # (B, 1280, H/32, W/32)
        return self.act(self.conv_head(x.mean((2, 3), keepdim=True))).flatten(1)  # (B, 1280)


class ShuffleNetV2(TimmStyleModel, TorchvisionShuffleNetV2):
    """torchvision's ShuffleNetV2 (arXiv 1807.11164) as a timm-style model: images (B, 3, H, W) → logits (B, K)."""

    classifier_name = "fc"

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

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.conv1(x))  # type: ignore[operator]  # (B, 24, H/4, W/4)
        return self.conv5(self.stage4(self.stage3(self.stage2(x))))  # type: ignore[operator]  # (B, C, H/32, W/32)


register(MobileNetV3Small, {"mobilenetv3_small_noah": {}}, first_conv="stem.0", classifier="classifier")
register(
    ShuffleNetV2,
    {"shufflenetv2_100": {"stages_repeats": [4, 8, 4], "stages_out_channels": [24, 116, 232, 464, 1024]}},
    first_conv="conv1.0",
    classifier="fc",
)
