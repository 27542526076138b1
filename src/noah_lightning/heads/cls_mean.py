"""Class token and mean of the positions, concatenated, then a linear layer."""

import torch
from torch import Tensor

from noah_lightning.heads import register_head
from noah_lightning.heads.base import PooledHead


@register_head("cls_mean")
class ClsMeanHead(PooledHead):
    """DINOv2's features for linear probes: the class token and the mean of the patch tokens, (B, 2C)."""

    paper = "arXiv 2304.07193"
    equation = "z = [x_cls, 1/L Σ_l x_l]"
    reads_class_token = True

    def __init__(self, in_channels: int, num_classes: int, batch_norm: bool = False, dropout: float = 0.0) -> None:
        super().__init__(2 * in_channels, num_classes, batch_norm, dropout)

    def forward(self, features: Tensor, class_token: Tensor) -> Tensor:  # type: ignore[override]  # reads one more
        """Features (B, C, L) and class token (B, C) → logits (B, K)."""
        return self.classify(torch.cat([class_token, features.flatten(2).mean(dim=2)], dim=1))
