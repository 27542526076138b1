"""Attentive probe of CAE: a block of cross-attention with a learned query, then a linear layer."""

import torch
from torch import Tensor, nn

from noah_lightning.heads import register_head
from noah_lightning.heads.base import split_width
from noah_lightning.heads.projection import ProjectingHead, folded_queries


@register_head("cae")
class CAEHead(ProjectingHead):
    """Multi-head cross-attention between one learned query and the features, without residual and MLP.

    Query, keys and values have a LayerNorm each before their projection; keys have no bias. The result is projected
    once more. Starting weights are the authors': truncated normal with std 0.02, biases and query zero, so that the
    attention starts uniform. They train it with ``batch_norm``.

    Args:
        heads: N, which must divide the width.
    """

    paper = "arXiv 2202.03026"
    equation = "z = W [z_1, ..., z_N], z_n = Σ_l softmax_l(Q_n LN(q)·K_n LN(x_l) / √(C/N)) V_n LN(x_l)"

    def __init__(
        self, in_channels: int, num_classes: int, heads: int = 8, batch_norm: bool = False, dropout: float = 0.0
    ) -> None:
        super().__init__(in_channels, num_classes, batch_norm, dropout)
        split_width(in_channels, heads, "heads")
        self.heads = heads
        self.token = nn.Parameter(torch.zeros(in_channels))
        self.query_norm, self.key_norm, self.value_norm = (nn.LayerNorm(in_channels, eps=1e-6) for _ in range(3))
        self.query = nn.Linear(in_channels, in_channels)
        self.key = nn.Linear(in_channels, in_channels, bias=False)
        self.value = nn.Linear(in_channels, in_channels)
        self.projection = nn.Linear(in_channels, in_channels)
        for linear in (self.query, self.key, self.value, self.projection):
            nn.init.trunc_normal_(linear.weight, std=0.02)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)

    def look(self, features: Tensor) -> tuple[Tensor, Tensor]:
        positions = features.transpose(1, 2)  # (B, L, C)
        queries = folded_queries(self.query(self.query_norm(self.token)), self.key, self.heads)  # (N, C)
        scores = queries @ self.key_norm(positions).transpose(1, 2)  # (B, N, L)
        return scores.softmax(dim=2), self.value_norm(positions)

    def classify(self, pooled: Tensor) -> Tensor:
        return super().classify(self.projection(pooled))
