"""How the official code of NOAH starts its backbones, where that differs from timm's way."""

from timm.models.efficientnet import EfficientNet
from timm.models.mlp_mixer import MlpMixer
from timm.models.resnet import ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from noah_lightning.errors import ConfigError
from noah_lightning.models.zoo.mobilenetv3_small import MobileNetV3Small
from noah_lightning.models.zoo.pvt_v1 import PyramidVisionTransformer
from noah_lightning.models.zoo.shufflenet_v2 import ShuffleNetV2

_AS_THEY_ARE = (ShuffleNetV2, PyramidVisionTransformer, MlpMixer)  # their classes start as the official code does


def start_officially(model: nn.Module) -> None:
    """Draw the starting weights of a backbone of the paper by the official rule, its own classifier included.

    Raises:
        ConfigError: a model of a kind that the paper does not train.
    """
    if isinstance(model, ResNet | EfficientNet | MobileNetV3Small):
        _start_convolutional(model)
    elif isinstance(model, VisionTransformer):  # the linear layers and the position embedding are timm's already
        if model.cls_token is not None:
            nn.init.trunc_normal_(model.cls_token, std=0.02)
    elif not isinstance(model, _AS_THEY_ARE):
        raise ConfigError(
            f"model.init=official is known for the paper's models, not for {type(model).__name__}; "
            "use model.init=timm"
        )


def _start_convolutional(model: nn.Module) -> None:
    """Depthwise convolutions are no exception, and neither is the last norm of a residual branch."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
