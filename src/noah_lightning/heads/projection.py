"""Base class of heads whose attention blocks pool a linear projection of the positions."""

import torch
from torch import Tensor, nn

from noah_lightning.heads.base import AttentiveHead


class ProjectingHead(AttentiveHead):
    """Attentive head whose block n pools its own D/N rows of one projection, ``self.value``, of all positions.

    Subclasses implement :meth:`look`. As the projection is linear, the positions are pooled first and only what is
    pooled is projected, which costs N/L of projecting every position; :meth:`attend`, which explains, projects all.
    """

    value: nn.Linear

    def look(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, C, L) → attention (B, N, L), which sums to one over L, and what is projected, (B, L, C)."""
        raise NotImplementedError

    def attend(self, features: Tensor) -> tuple[Tensor, Tensor]:
        attention, positions = self.look(features)
        values = self.value(positions).transpose(1, 2)  # (B, D, L)
        return attention, values.unflatten(1, (attention.shape[1], -1))  # (B, N, D/N, L)

    def pool(self, features: Tensor) -> Tensor:
        attention, positions = self.look(features)
        weight = self.value.weight.unflatten(0, (attention.shape[1], -1))  # (N, D/N, C)
        pooled = torch.einsum("bnc,ndc->bnd", attention @ positions, weight).flatten(1)  # (B, D)
        return pooled if self.value.bias is None else pooled + self.value.bias


def folded_queries(query: Tensor, key: nn.Linear, heads: int) -> Tensor:
    """Queries (N, C) that score positions as the N heads of ``query`` (C) do their keys, scaled by √(C/N).

    q_n·(W_n x) = (q_n W_n)·x, so that no position needs a key.
    """
    query, weight = query.unflatten(0, (heads, -1)), key.weight.unflatten(0, (heads, -1))  # (N, C/N), (N, C/N, C)
    return torch.einsum("nd,ndc->nc", query, weight) * query.shape[1] ** -0.5
