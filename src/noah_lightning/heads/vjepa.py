"""Attentive pooler of V-JEPA: a cross-attention block with a learned query, then a linear layer."""

import torch
from timm.layers import Mlp, trunc_normal_
from torch import Tensor, nn

from noah_lightning.heads import register_head
from noah_lightning.heads.base import split_width
from noah_lightning.heads.projection import ProjectingHead, folded_queries


@register_head("vjepa")
class VJEPAHead(ProjectingHead):
    """A learned query attends to the normalized positions; the result is added to the query, and an MLP follows.

    As in the paper, the heads are concatenated without an output projection. Keys have no bias: it would shift all
    scores of a head alike.

    Args:
        in_channels: C, which is also the width D of the pooled features.
        num_classes: K.
        heads: N, the number of attention heads.
        batch_norm, dropout: before the linear layer, as in :class:`PooledHead`.
    """

    paper = "arXiv 2404.08471"
    equation = "z = u + MLP(LN(u)), u = q + MHA(q, LN(x))"

    def __init__(
        self, in_channels: int, num_classes: int, heads: int = 8, batch_norm: bool = False, dropout: float = 0.0
    ) -> None:
        super().__init__(in_channels, num_classes, batch_norm, dropout)
        split_width(in_channels, heads, "heads")
        self.heads = heads
        self.query_token = nn.Parameter(torch.empty(in_channels))
        trunc_normal_(self.query_token, std=0.02)
        self.norm_features = nn.LayerNorm(in_channels)
        self.query = nn.Linear(in_channels, in_channels)
        self.key = nn.Linear(in_channels, in_channels, bias=False)
        self.value = nn.Linear(in_channels, in_channels)
        self.norm_pooled = nn.LayerNorm(in_channels)
        self.mlp = Mlp(in_channels, 4 * in_channels)

    def look(self, features: Tensor) -> tuple[Tensor, Tensor]:
        positions = self.norm_features(features.transpose(1, 2))  # (B, L, C)
        queries = folded_queries(self.query(self.query_token), self.key, self.heads)  # (N, C)
        return (queries @ positions.transpose(1, 2)).softmax(dim=2), positions

    def classify(self, pooled: Tensor) -> Tensor:
        token = self.query_token + pooled  # (B, D)
        return super().classify(token + self.mlp(self.norm_pooled(token)))
