"""Log-sum-exp pooling with a learned sharpness, then a linear layer."""

from timm.layers import LsePlus1d
from torch import Tensor

from noah_lightning.heads import register_head
from noah_lightning.heads.base import PooledHead


@register_head("lse_plus")
class LsePlusHead(PooledHead):
    """LSE+ as timm has it: the average of each channel for small r, the maximum for large r.

    One r for all channels, learned where the paper fixes it.

    Args:
        r: starting value of r (timm's is 10).
    """

    paper = "arXiv 1411.6228"
    equation = "z = 1/r log(1/L Σ_l exp(r x_l)), r learned"

    def __init__(
        self, in_channels: int, num_classes: int, r: float = 10.0, batch_norm: bool = False, dropout: float = 0.0
    ) -> None:
        super().__init__(in_channels, num_classes, batch_norm, dropout)
        self.pooling = LsePlus1d(float(r))

    def pool(self, features: Tensor) -> Tensor:
        pooled: Tensor = self.pooling(features.transpose(1, 2))
        return pooled
