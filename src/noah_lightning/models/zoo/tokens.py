"""The paper's networks over tokens that timm lacks: PVT version 1, and DeiT, Mixer and gMLP with other widths."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from timm.data import IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD
from timm.layers import DropPath, GatedMlp, Mlp, PatchEmbed, resample_abs_pos_embed, trunc_normal_
from timm.layers import calculate_drop_path_rates as drop_path_rates
from timm.models.mlp_mixer import MlpMixer, SpatialGatingBlock
from timm.models.pvt_v2 import Attention
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from noah_lightning.models.zoo import TimmStyleModel, register

_STRIDES = (4, 2, 2, 2)  # of the patch embeddings


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int, mlp_ratio: int, reduction: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads, reduction)  # to a map `reduction` times smaller in height and width
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, width * mlp_ratio)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x), size))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Stage(nn.Module):
    """Patches embedded, their positions added, and transformer blocks."""

    def __init__(
        self, inputs: int, width: int, stride: int, grid: tuple[int, int], prefix_tokens: int, blocks: Sequence[Block]
    ) -> None:
        super().__init__()
        self.grid, self.prefix_tokens = grid, prefix_tokens
        self.patch_embed = PatchEmbed(None, stride, inputs, width, norm_layer=nn.LayerNorm)
        self.pos_embed = nn.Parameter(torch.empty(1, prefix_tokens + grid[0] * grid[1], width))
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor, prefix: Tensor | None = None) -> tuple[Tensor, tuple[int, int]]:
        """Map (B, C', H', W') → tokens (B, L, C), after those of ``prefix`` (1, P, C), and their (H, W)."""
        size = self.patch_embed.dynamic_feat_size((x.shape[2], x.shape[3]))
        x = self.patch_embed(x)  # (B, L, C)
        if prefix is not None:
            x = torch.cat([prefix.expand(len(x), -1, -1), x], dim=1)  # (B, P + L, C)
        x = x + resample_abs_pos_embed(  # as it is where the size is that of the embedding
            self.pos_embed, size, self.grid, self.prefix_tokens, interpolation="bilinear", antialias=False
        )
        for block in self.blocks:
            x = block(x, size)
        return x, size


class PyramidVisionTransformer(TimmStyleModel):
    """PVT version 1 (arXiv 2102.12122): images (B, 3, H, W), H and W multiples of 32 → logits (B, K).

    Args:
        num_classes: K; 0 leaves the classifier out.
        img_size: side in pixels that the position embeddings are made for; other sizes resize them.
        widths, depths, heads, mlp_ratios, reductions: one number for each of the four stages.
        class_token: prepend a class token in the last stage.
        global_pool: what is classified: the class ``token``, the ``avg`` of the positions, or ``""``: no pooling,
            ``forward`` then gives all tokens (B, L, C).
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last block, rising linearly from 0 over all blocks.
    """

    classifier_name = "head"

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        img_size: int | tuple[int, int] = 224,
        widths: Sequence[int] = (64, 128, 320, 512),
        depths: Sequence[int] = (2, 2, 2, 2),
        heads: Sequence[int] = (1, 2, 5, 8),
        mlp_ratios: Sequence[int] = (8, 8, 4, 4),
        reductions: Sequence[int] = (8, 4, 2, 1),
        class_token: bool = True,
        global_pool: str = "token",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_features = self.head_hidden_size = widths[-1]
        self.num_prefix_tokens = int(class_token)
        self.poolings = ("token", "avg", "") if class_token else ("avg", "")
        self.cls_token = nn.Parameter(torch.empty(1, 1, widths[-1])) if class_token else None
        drop_path: Iterator[Any] = iter(drop_path_rates(drop_path_rate, sum(depths)))
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        self.stages = nn.ModuleList()
        for i, inputs in enumerate((in_chans, *widths[:-1])):
            height, width = height // _STRIDES[i], width // _STRIDES[i]
            blocks = [
                Block(widths[i], heads[i], mlp_ratios[i], reductions[i], next(drop_path)) for _ in range(depths[i])
            ]
            prefix_tokens = self.num_prefix_tokens if i == len(widths) - 1 else 0
            self.stages.append(Stage(inputs, widths[i], _STRIDES[i], (height, width), prefix_tokens, blocks))
        self.norm = nn.LayerNorm(widths[-1], eps=1e-6)
        self.head_drop = nn.Dropout(drop_rate)
        self.reset_classifier(num_classes, global_pool)
        self.init_weights()

    def init_weights(self) -> None:
        """Truncated normal 0.02 for linear layers and embeddings, zero for the biases of linear layers."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, Stage):
                trunc_normal_(module.pos_embed, std=0.02)
        if self.cls_token is not None:
            trunc_normal_(self.cls_token, std=0.02)

    def no_weight_decay(self) -> set[str]:
        """Parameters that weight decay spares although they have more than one dimension."""
        return {"cls_token", *(f"stages.{i}.pos_embed" for i in range(len(self.stages)))}

    def forward_features(self, x: Tensor) -> Tensor:
        """Images → normed tokens (B, P + L, C) of the last stage, P = 1 with a class token."""
        *earlier, last = self.stages
        for stage in earlier:
            tokens, size = stage(x)
            x = tokens.transpose(1, 2).unflatten(2, size)  # (B, L, C) -> (B, C, H, W)
        return self.norm(last(x, self.cls_token)[0])

    def pool(self, x: Tensor) -> Tensor:
        """Tokens (B, P + L, C) → what is classified (B, C); without pooling all tokens."""
        if self.global_pool == "token":
            return x[:, 0]
        return x[:, self.num_prefix_tokens :].mean(1) if self.global_pool else x


class NarrowDeiT(VisionTransformer):
    """DeiT whose classifier may keep the input width of the full one.

    The released code of DeiT-Tiny ×0.75 and ×0.5 puts a linear layer and a tanh between the last norm and the
    classifier, up to the 192 features of DeiT-Tiny; the published parameter counts are those without it.

    Args:
        pre_logits: have that layer.
        **kwargs: timm's.
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
    PyramidVisionTransformer,
    {
        "pvt_v1_tiny": {},
        "pvt_v1_tiny_075": {"widths": (48, 96, 240, 384)},
        "pvt_v1_tiny_050": {"widths": (32, 64, 160, 256)},
    },
    first_conv="stages.0.patch_embed.proj",
    classifier="head",
)
register(
    NarrowDeiT,
    {
        "deit_tiny_075_patch16_224": {**_DEIT, "embed_dim": 144},
        "deit_tiny_050_patch16_224": {**_DEIT, "embed_dim": 96},
    },
    adapt=_fit_image_size,
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
    fixed_input_size=True,
    first_conv="stem.proj",
    classifier="head",
    mean=IMAGENET_INCEPTION_MEAN,
    std=IMAGENET_INCEPTION_STD,
)
