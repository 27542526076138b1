"""SimPool: one attention whose query is the average of the features, then a linear layer."""

from torch import Tensor, nn

from noah_lightning.heads import register_head
from noah_lightning.heads.base import AttentiveHead


@register_head("simpool")
class SimPoolHead(AttentiveHead):
    """The projected average attends to the projected positions and pools the positions themselves.

    With γ the pooling is a generalized mean weighted by the attention, over values that are shifted to be positive.
    The parameters start as in timm's ``SimPool1d``: torch's default for linear layers and LayerNorm.

    Args:
        gamma: γ; None, timm's default, pools without a power.
    """

    paper = "arXiv 2309.06891"
    equation = "z = Σ_l a_l v_l, a = softmax_l(W_q x̄·W_k v_l / √C), v_l = LN(x_l)"

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        gamma: float | None = None,
        batch_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(in_channels, num_classes, batch_norm, dropout)
        self.gamma = gamma
        self.layer_norm = nn.LayerNorm(in_channels)
        self.query = nn.Linear(in_channels, in_channels, bias=False)
        self.key = nn.Linear(in_channels, in_channels, bias=False)

    def attend(self, features: Tensor) -> tuple[Tensor, Tensor]:
        values = self.layer_norm(features.transpose(1, 2)).transpose(1, 2)  # (B, C, L)
        # q·(W_k v) = (q W_k)·v costs 1/L of a projection of every position.
        query = self.query(features.mean(dim=2)) @ self.key.weight  # (B, C)
        scores = query.unsqueeze(1) @ values  # (B, 1, C) @ (B, C, L) -> (B, 1, L)
        attention = (scores * features.shape[1] ** -0.5).softmax(dim=2)
        if self.gamma is not None:
            values = (values - values.amin(dim=2, keepdim=True) + 1e-6).pow(self.gamma)
        return attention, values.unsqueeze(1)  # (B, 1, C, L)

    def classify(self, pooled: Tensor) -> Tensor:
        return super().classify(pooled if self.gamma is None else pooled.pow(1 / self.gamma))
