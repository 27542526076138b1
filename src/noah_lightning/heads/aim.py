"""Attention probe of AIM and AIMv2: a learned query attends with several heads, then a linear layer."""

import torch
from torch import Tensor, nn

from noah_lightning.heads import register_head
from noah_lightning.heads.base import split_width
from noah_lightning.heads.projection import ProjectingHead, folded_queries


@register_head("aim")
class AIMHead(ProjectingHead):
    """One learned query, not projected; keys and values are projections, without bias, of standardized features.

    The features are standardized by a BatchNorm without parameters over images and positions, always, as the authors
    do; ``batch_norm`` adds one before the classifier. The query starts normal with std 0.02.

    Args:
        heads: N, which must divide the width.
    """

    paper = "arXiv 2401.08541"
    equation = "z_n = Σ_l softmax_l(q_n·K_n x̂_l / √(C/N)) V_n x̂_l, x̂ = BN(x)"

    def __init__(
        self, in_channels: int, num_classes: int, heads: int = 8, batch_norm: bool = False, dropout: float = 0.0
    ) -> None:
        super().__init__(in_channels, num_classes, batch_norm, dropout)
        split_width(in_channels, heads, "heads")
        self.heads = heads
        self.feature_norm = nn.BatchNorm1d(in_channels, eps=1e-6, affine=False)
        self.query = nn.Parameter(0.02 * torch.randn(in_channels))
        self.key = nn.Linear(in_channels, in_channels, bias=False)
        self.value = nn.Linear(in_channels, in_channels, bias=False)

    def look(self, features: Tensor) -> tuple[Tensor, Tensor]:
        features = self.feature_norm(features)  # (B, C, L)
        scores = folded_queries(self.query, self.key, self.heads) @ features  # (N, C) @ (B, C, L) -> (B, N, L)
        return scores.softmax(dim=2), features.transpose(1, 2)
