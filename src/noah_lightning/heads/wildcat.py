"""WILDCAT: each class averages its highest and its lowest scores over the positions."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from noah_lightning.heads import register_head
from noah_lightning.heads.base import Explanation


@register_head("wildcat")
class WildcatHead(nn.Module):
    """M linear maps of scores per class, averaged; the logit is the mean of the k highest + α mean of the k lowest.

    The mean of linear maps is the linear map with their mean weights, which costs 1/M; M changes how
    the head starts and trains. Weights start by torch's default, as in the official code.

    Args:
        maps: M (4 in the paper).
        share: k as a share of the positions; rounded, at least one position.
        alpha: α, how much the lowest scores count (0.7 in the paper).
        dropout: probability with which a feature is dropped in training.
    """

    paper = "Durand et al., CVPR 2017"
    equation = "y_k = mean of the highest s_kl + α mean of the lowest s_kl over l, s_kl = 1/M Σ_m (w_km·x_l + b_km)"

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        maps: int = 4,
        share: float = 0.2,
        alpha: float = 0.7,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.maps, self.share, self.alpha = maps, share, alpha
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(in_channels, num_classes * maps)  # output k M + m is map m of class k

    def forward(self, features: Tensor) -> Tensor:
        """Feature map (B, C, L) or (B, C, H, W) → logits (B, K)."""
        scores = self._scores(features)
        count = self._count(scores)
        highest, lowest = scores.topk(count, dim=2), scores.topk(count, dim=2, largest=False)
        return highest.values.mean(dim=2) + self.alpha * lowest.values.mean(dim=2)

    def explain(self, features: Tensor) -> Explanation:
        """The logits with the attention of two blocks, to the highest and to the lowest scores of each class."""
        scores = self._scores(features)
        count = self._count(scores)
        chosen = [scores.topk(count, dim=2, largest=largest).indices for largest in (True, False)]
        attention = torch.stack([torch.zeros_like(scores).scatter(2, places, 1 / count) for places in chosen], dim=1)
        contribution = (attention[:, 0] + self.alpha * attention[:, 1]) * scores  # (B, K, L)
        return Explanation(contribution.sum(dim=2), attention, contribution)

    def _scores(self, features: Tensor) -> Tensor:
        """Scores (B, K, L) of the classes at each position."""
        weight = self.fc.weight.unflatten(0, (-1, self.maps)).mean(dim=1)  # (K M, C) -> (K, C)
        bias = self.fc.bias.unflatten(0, (-1, self.maps)).mean(dim=1)
        positions = self.dropout(features.flatten(2)).transpose(1, 2)  # (B, L, C)
        return functional.linear(positions, weight, bias).transpose(1, 2)

    def _count(self, scores: Tensor) -> int:
        """k for this number of positions."""
        return max(1, round(self.share * scores.shape[2]))
