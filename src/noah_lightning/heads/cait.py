"""Class attention of CaiT: blocks in which a learned class token attends to the positions, then a linear layer."""

from functools import partial
from typing import Any

import torch
from timm.layers import trunc_normal_
from timm.models.cait import LayerScaleBlockClassAttn
from torch import Tensor, nn

from noah_lightning.heads import register_head
from noah_lightning.heads.base import (
    Explanation,
    PooledHead,
    dot_product_attention,
    linearized,
    split_heads,
    split_width,
)


@register_head("cait")
class CaiTHead(PooledHead):
    """A learned class token attends to itself and to the positions in each block; an MLP follows in each.

    Blocks are timm's, without stochastic depth.

    Args:
        in_channels: C, which is also the width of the class token.
        num_classes: K.
        heads: N, the number of attention heads of a block.
        depth: M, the number of blocks.
        layer_scale: initial scale of what each block adds; the paper has 0.1 for shallow models.
        batch_norm, dropout: before the linear layer, as in :class:`PooledHead`.
    """

    paper = "arXiv 2103.17239"
    equation = "z = LN(t_M), t_m = u + γ' MLP(LN(u)), u = t + γ MHA(LN(t), LN([t, x])), t = t_(m-1)"

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        heads: int = 8,
        depth: int = 2,
        layer_scale: float = 0.1,
        batch_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(in_channels, num_classes, batch_norm, dropout)
        split_width(in_channels, heads, "heads")
        self.heads = heads
        norm: Any = partial(nn.LayerNorm, eps=1e-6)
        self.class_token = nn.Parameter(torch.empty(1, 1, in_channels))
        trunc_normal_(self.class_token, std=0.02)
        self.blocks = nn.ModuleList(
            LayerScaleBlockClassAttn(in_channels, heads, qkv_bias=True, norm_layer=norm, init_values=layer_scale)
            for _ in range(depth)
        )
        self.last_norm = norm(in_channels)

    def pool(self, features: Tensor) -> Tensor:
        tokens, class_token = self._tokens(features)
        for block in self.blocks:
            class_token = block(tokens, class_token)
        pooled: Tensor = self.last_norm(class_token[:, 0])
        return pooled

    def _tokens(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, C, L) → tokens (B, L, C) and the class token before the first block, (B, 1, C)."""
        return features.transpose(1, 2), self.class_token.expand(features.shape[0], -1, -1)

    def explain(self, features: Tensor) -> Explanation:
        """The logits with the attention of all blocks, (B, M N, K, L), and the contributions, in evaluation mode.

        The class token also attends to itself. That part of the attention is not of a position: the attention here is
        renormalized over the positions, and what the class token adds is divided among them as :func:`linearized`
        divides the rest. All attention counts as constant.
        """
        tokens, class_token = self._tokens(features.flatten(2))
        attentions, values = [], []
        block: Any
        for block in self.blocks:
            normed = block.norm1(torch.cat([class_token, tokens], dim=1))  # (B, 1 + L, C)
            query, keys, value = (
                split_heads(layer(normed), self.heads) for layer in (block.attn.q, block.attn.k, block.attn.v)
            )
            attentions.append(dot_product_attention(query[..., 0], keys))  # (B, N, 1 + L)
            values.append(value[..., 1:])  # (B, N, C/N, L)
            class_token = block(tokens, class_token)
        attention = torch.cat(attentions, dim=1)
        why = linearized(self._after_attention, attention[..., 1:], torch.cat(values, dim=1), attention[..., 0])
        return why._replace(attention=why.attention / why.attention.sum(dim=3, keepdim=True))

    def _after_attention(self, pooled: Tensor, to_itself: Tensor) -> Tensor:
        """What all blocks pooled, (B, M C), and the class token's attention to itself, (B, M N) → logits (B, K)."""
        depth = len(self.blocks)
        token = self.class_token[:, 0]
        block: Any
        parts = pooled.chunk(depth, dim=1), to_itself.chunk(depth, dim=1)
        for block, attended, weight in zip(self.blocks, *parts, strict=True):
            own = block.attn.v(block.norm1(token)).unflatten(1, (self.heads, -1))  # (B, N, C/N)
            attended = attended + (weight.unsqueeze(2) * own).flatten(1)
            token = token + block.gamma_1 * block.attn.proj(attended)
            token = token + block.gamma_2 * block.mlp(block.norm2(token))
        return self.classify(self.last_norm(token))
