"""Generalized-mean pooling with a learned power, then a linear layer."""

import math

import torch
from torch import Tensor, nn

from noah_lightning.heads import register_head
from noah_lightning.heads.base import PooledHead

_EPSILON = 1e-6  # smallest value of a feature, as powers of negative numbers are not real


@register_head("gem")
class GeMHead(PooledHead):
    """Generalized mean of each channel: the average at p = 1, towards the maximum as p grows.

    One power for all channels. Features below 1e-6 count as 1e-6: the pooling is made for features after a ReLU.

    Args:
        power: starting value of p (the authors' is 3).
    """

    paper = "arXiv 1711.02512"
    equation = "z = (1/L Σ_l max(x_l, ε)^p)^(1/p), p learned"

    def __init__(
        self, in_channels: int, num_classes: int, power: float = 3.0, batch_norm: bool = False, dropout: float = 0.0
    ) -> None:
        super().__init__(in_channels, num_classes, batch_norm, dropout)
        self.power = nn.Parameter(torch.tensor(float(power)))

    def pool(self, features: Tensor) -> Tensor:
        # In logarithms: the power of a channel that is zero everywhere would underflow, and its gradient be NaN.
        powers = self.power * features.clamp(min=_EPSILON).log()  # (B, C, L)
        return ((powers.logsumexp(dim=2) - math.log(features.shape[2])) / self.power).exp()
