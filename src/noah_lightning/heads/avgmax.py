"""Mean of average and max pooling, then a linear layer."""

from torch import Tensor

from noah_lightning.heads import register_head
from noah_lightning.heads.base import PooledHead


@register_head("avgmax")
class AvgMaxHead(PooledHead):
    """Mean of the average and of the largest value of each channel, as timm's ``avgmax`` pooling."""

    paper = "arXiv 1509.08985"
    equation = "z = (1/L Σ_l x_l + max_l x_l) / 2"

    def pool(self, features: Tensor) -> Tensor:
        return (features.mean(dim=2) + features.amax(dim=2)) / 2
