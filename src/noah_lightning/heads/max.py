"""Max pooling, then a linear layer."""

from torch import Tensor

from noah_lightning.heads import register_head
from noah_lightning.heads.base import PooledHead


@register_head("max")
class MaxHead(PooledHead):
    """Largest value of each channel over the positions."""

    paper = "arXiv 1406.4729"
    equation = "z = max_l x_l"

    def pool(self, features: Tensor) -> Tensor:
        return features.amax(dim=2)
