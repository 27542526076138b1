"""Efficient Probing: learned queries attend to the features without keys, then a linear layer."""

import torch
from torch import Tensor, nn

from noah_lightning.heads import register_head
from noah_lightning.heads.base import split_width
from noah_lightning.heads.projection import ProjectingHead


@register_head("ep")
class EPHead(ProjectingHead):
    """M learned queries, each of which attends to the features as they are and pools its own 1/M of their values.

    The queries start normal with std 0.02, the authors' choice; they train it with ``batch_norm``.

    Args:
        queries: M, which must divide the width.
    """

    paper = "arXiv 2506.10178"
    equation = "z_m = Σ_l softmax_l(q_m·x_l / √C) V_m x_l, z = [z_1, ..., z_M]"

    def __init__(
        self, in_channels: int, num_classes: int, queries: int = 32, batch_norm: bool = False, dropout: float = 0.0
    ) -> None:
        super().__init__(in_channels, num_classes, batch_norm, dropout)
        split_width(in_channels, queries, "queries")
        self.queries = nn.Parameter(0.02 * torch.randn(queries, in_channels))
        self.value = nn.Linear(in_channels, in_channels, bias=False)

    def look(self, features: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.queries @ features * features.shape[1] ** -0.5  # (M, C) @ (B, C, L) -> (B, M, L)
        return scores.softmax(dim=2), features.transpose(1, 2)
