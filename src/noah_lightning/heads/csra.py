"""CSRA: class-specific residual attention over the class activation maps."""

from math import inf
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from noah_lightning.heads import register_head
from noah_lightning.heads.base import Explanation

_TEMPERATURES = {
    1: (1.0,),
    2: (1.0, inf),
    4: (1.0, 2.0, 4.0, inf),
    6: (1.0, 2.0, 3.0, 4.0, 5.0, inf),
    8: (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, inf),
}


@register_head("csra")
class CSRAHead(nn.Module):
    """Class activation maps, pooled by their mean plus λ times their mean under the softmax of the maps themselves.

    Each head has its own classifier, with unit vectors as weights and without bias, and its own temperature: 1 for
    one head, rising to infinity (the largest score) for several. A logit is a sum over positions, so contributions
    are exact.

    Args:
        in_channels: C.
        num_classes: K.
        heads: H, the number of temperatures.
        weight: λ, the weight of the attentive mean.
        dropout: probability with which a channel of a position is dropped in training.
    """

    paper = "arXiv 2108.02456"
    equation = "y_k = Σ_h Σ_l (1/L + λ softmax_l(T_h s_hkl)) s_hkl, s_hkl = m_hk·x_l/‖m_hk‖"

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        heads: Literal[1, 2, 4, 6, 8] = 1,
        weight: float = 0.1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.temperatures = _TEMPERATURES[heads]
        self.attention_weight = weight
        self.dropout = nn.Dropout(dropout)
        self.scores = nn.Linear(in_channels, heads * num_classes, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Feature map (B, C, L) or (B, C, H, W) → logits (B, K)."""
        attention, scores = self._attend(features)
        weighted = (attention * scores).sum(dim=3)  # (B, H, K)
        return (scores.mean(dim=3) + self.attention_weight * weighted).sum(dim=1)

    def explain(self, features: Tensor) -> Explanation:
        """The logits with the attention (B, H, K, L) and with what each position contributes to each class."""
        attention, scores = self._attend(features)
        contribution = ((1 / scores.shape[3] + self.attention_weight * attention) * scores).sum(dim=1)  # (B, K, L)
        return Explanation(contribution.sum(dim=2), attention, contribution)

    def _attend(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, C, L) → attention (B, H, K, L), which sums to one over L, and scores (B, H, K, L)."""
        tokens = self.dropout(features.flatten(2).transpose(1, 2))  # (B, L, C)
        scores = linear(tokens, normalize(self.scores.weight, dim=1))  # (B, L, H K)
        scores = scores.unflatten(2, (len(self.temperatures), -1)).permute(0, 2, 3, 1)  # (B, H, K, L)
        by_head = zip(self.temperatures, scores.unbind(1), strict=True)
        return torch.stack([_attention(temperature, maps) for temperature, maps in by_head], dim=1), scores


def _attention(temperature: float, scores: Tensor) -> Tensor:
    """Softmax of the scores over the last dimension; if infinite, equal weights on the largest scores."""
    if temperature < inf:
        return (temperature * scores).softmax(dim=-1)
    largest = (scores == scores.amax(dim=-1, keepdim=True)).to(scores.dtype)
    return largest / largest.sum(dim=-1, keepdim=True)
