"""Multihead attention pooling by a learned latent, then a linear layer."""

from functools import partial
from typing import Any

from timm.layers import AttentionPoolLatent
from torch import Tensor, nn

from noah_lightning.heads import register_head
from noah_lightning.heads.base import AttentiveHead, dot_product_attention, split_heads, split_width


@register_head("map")
class MAPHead(AttentiveHead):
    """The MAP head of SigLIP: a learned latent attends to the positions; an MLP with residual connection follows.

    Layers, initialization and parameter names are those of timm's ``AttentionPoolLatent``.

    Args:
        in_channels: C, which is also the width D of the pooled features.
        num_classes: K.
        heads: N, the number of attention heads.
        batch_norm, dropout: before the linear layer, as in :class:`PooledHead`.
    """

    paper = "arXiv 2106.04560"
    equation = "z = u + MLP(LN(u)), u = MHA(q, x)"

    def __init__(
        self, in_channels: int, num_classes: int, heads: int = 8, batch_norm: bool = False, dropout: float = 0.0
    ) -> None:
        super().__init__(in_channels, num_classes, batch_norm, dropout)
        split_width(in_channels, heads, "heads")
        norm: Any = partial(nn.LayerNorm, eps=1e-6)
        self.pooling = AttentionPoolLatent(in_channels, num_heads=heads, norm_layer=norm)

    def attend(self, features: Tensor) -> tuple[Tensor, Tensor]:
        heads = self.pooling.num_heads
        query = split_heads(self.pooling.q(self.pooling.latent), heads).squeeze(3)  # (1, N, D/N)
        keys, values = self.pooling.kv(features.transpose(1, 2)).chunk(2, dim=2)  # (B, L, D) each
        return dot_product_attention(query, split_heads(keys, heads)), split_heads(values, heads)

    def classify(self, pooled: Tensor) -> Tensor:
        projected = self.pooling.proj(pooled)  # (B, D)
        return super().classify(projected + self.pooling.mlp(self.pooling.norm(projected)))
