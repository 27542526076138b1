"""Self-attention without parameters and the mean of its outputs, then a linear layer."""

from torch import Tensor

from noah_lightning.heads import register_head
from noah_lightning.heads.base import AttentiveHead, split_heads, split_width


@register_head("prr")
class PRRHead(AttentiveHead):
    """Patch representation refinement: every position attends to all, with its features as query, key and value.

    The mean of the refined positions is the sum over the positions of their mean attention times their features, so
    that mean, (B, N, L), is the attention of the head, exactly.

    Args:
        in_channels: C.
        num_classes: K.
        heads: N, the number of attention heads.
        batch_norm, dropout: before the linear layer, as in :class:`PooledHead`.
    """

    paper = "arXiv 2603.04892"
    equation = "z = [1/L Σ_m Σ_l softmax_l(x_nm·x_nl/√d) x_nl]_n"

    def __init__(
        self, in_channels: int, num_classes: int, heads: int = 8, batch_norm: bool = False, dropout: float = 0.0
    ) -> None:
        super().__init__(in_channels, num_classes, batch_norm, dropout)
        self.head_width = split_width(in_channels, heads, "heads")
        self.heads = heads

    def attend(self, features: Tensor) -> tuple[Tensor, Tensor]:
        values = split_heads(features.transpose(1, 2), self.heads)  # (B, N, C/N, L)
        scores = values.transpose(2, 3) @ values * self.head_width**-0.5  # (B, N, L, L)
        return scores.softmax(dim=3).mean(dim=2), values
