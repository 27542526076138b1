"""The paper's narrow DeiT, Mixer and gMLP: timm's classes with other widths."""

from collections import OrderedDict
from typing import Any

from timm.data import IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD
from timm.layers import GatedMlp
from timm.models.mlp_mixer import MlpMixer, SpatialGatingBlock
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from noah_lightning.models.zoo import register


class NarrowDeiT(VisionTransformer):
    """DeiT whose classifier may keep the input width of the full one.

    The released code of DeiT-Tiny ×0.75 and ×0.5 puts a linear layer and a tanh between the last norm and the
    classifier, up to the 192 features of DeiT-Tiny; the published parameter counts are those without it.

    Args:
        pre_logits: have that layer.
        class_token, **kwargs: timm's.
    """

    def __init__(self, *, pre_logits: bool = False, class_token: bool = True, **kwargs: Any) -> None:
        super().__init__(class_token=class_token, **kwargs)
        self.pre_logits: nn.Module = nn.Identity()
        if pre_logits:
            self.head_hidden_size = 192
            fc = _linear(self.embed_dim, self.head_hidden_size)
            self.pre_logits = nn.Sequential(OrderedDict(fc=fc, act=nn.Tanh()))
            self.reset_classifier(self.num_classes)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """timm's, over the width that the classifier sees."""
        super().reset_classifier(num_classes, global_pool)
        if num_classes and self.head_hidden_size != self.embed_dim:
            self.head = _linear(self.head_hidden_size, num_classes)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.pre_logits(self.fc_norm(self.pool(x)))  # (B, 192), or (B, T, 192) without pooling
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.trunc_normal_(layer.weight, std=0.02)  # as timm starts the linear layers of a DeiT
    nn.init.zeros_(layer.bias)
    return layer


def _fit_image_size(state: dict[str, Tensor], model: VisionTransformer) -> dict[str, Tensor]:
    """timm's way of fitting loaded position embeddings, which leaves out the layer before the classifier."""
    own = {key: tensor for key, tensor in state.items() if key.startswith("pre_logits.")}
    return {**checkpoint_filter_fn(state, model), **own}


_DEIT = {"patch_size": 16, "depth": 12, "num_heads": 3}
_MIXER = {"patch_size": 16, "num_blocks": 8}
_GMLP: dict[str, Any] = {"patch_size": 16, "num_blocks": 30, "mlp_ratio": 6}
_GMLP |= {"block_layer": SpatialGatingBlock, "mlp_layer": GatedMlp}
register(
    NarrowDeiT,
    {
        "deit_tiny_075_patch16_224": {**_DEIT, "embed_dim": 144},
        "deit_tiny_050_patch16_224": {**_DEIT, "embed_dim": 96},
    },
    pretrained_filter_fn=_fit_image_size,
    interpolation="bicubic",
    fixed_input_size=True,
    first_conv="patch_embed.proj",
    classifier="head",
)
register(
    MlpMixer,
    {
        "mixer_s16_075_224": {**_MIXER, "embed_dim": 384},
        "mixer_s16_050_224": {**_MIXER, "embed_dim": 256},
        "gmlp_ti16_075_224": {**_GMLP, "embed_dim": 96},
        "gmlp_ti16_050_224": {**_GMLP, "embed_dim": 64},
    },
    interpolation="bicubic",
    fixed_input_size=True,
    first_conv="stem.proj",
    classifier="head",
    mean=IMAGENET_INCEPTION_MEAN,
    std=IMAGENET_INCEPTION_STD,
)
