"""Attention-based multiple-instance learning: a small network scores each position, then a linear layer."""

from torch import Tensor, nn

from noah_lightning.heads import register_head
from noah_lightning.heads.base import AttentiveHead


@register_head("abmil")
class ABMILHead(AttentiveHead):
    """The positions are a bag; a hidden layer of H units, with or without gates, says how much each counts.

    Without biases, as the equation. Weights start by Glorot's uniform rule, as in the paper.

    Args:
        hidden: H (the paper's is 128).
        gated: multiply the hidden units by sigmoid gates; False is the paper's attention without gates.
    """

    paper = "arXiv 1802.04712"
    equation = "z = Σ_l a_l x_l, a = softmax_l(w·(tanh(V x_l) ⊙ σ(U x_l)))"

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        hidden: int = 128,
        gated: bool = True,
        batch_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(in_channels, num_classes, batch_norm, dropout)
        self.hidden = nn.Linear(in_channels, hidden, bias=False)
        self.gate = nn.Linear(in_channels, hidden, bias=False) if gated else None
        self.score = nn.Linear(hidden, 1, bias=False)
        for linear in (self.hidden, self.gate, self.score):
            if linear is not None:
                nn.init.xavier_uniform_(linear.weight)

    def attend(self, features: Tensor) -> tuple[Tensor, Tensor]:
        positions = features.transpose(1, 2)  # (B, L, C)
        hidden = self.hidden(positions).tanh()  # (B, L, H)
        if self.gate is not None:
            hidden = hidden * self.gate(positions).sigmoid()
        attention = self.score(hidden).softmax(dim=1).transpose(1, 2)  # (B, 1, L)
        return attention, features.unsqueeze(1)  # (B, 1, C, L)
