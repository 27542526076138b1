"""Average pooling, then a linear layer."""

import torch
from torch import Tensor

from noah_lightning.heads import register_head
from noah_lightning.heads.base import AttentiveHead


@register_head("avg")
class AvgHead(AttentiveHead):
    """Mean over the positions: the same attention everywhere. Its contributions are the class activation maps.

    With ``batch_norm`` and a frozen backbone this is the linear probe.
    """

    paper = "arXiv 1312.4400"
    equation = "z = 1/L Σ_l x_l"

    def attend(self, features: Tensor) -> tuple[Tensor, Tensor]:
        attention = torch.full_like(features[:, :1], 1 / features.shape[2])  # (B, 1, L)
        return attention, features.unsqueeze(1)  # (B, 1, C, L)

    def pool(self, features: Tensor) -> Tensor:
        return features.mean(dim=2)
