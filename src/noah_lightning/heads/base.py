"""Base classes of heads that pool the feature map and classify the result with a linear layer.

Shapes: B images, C channels, L positions, N attention blocks (or heads, or queries), D pooled features, K classes.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import jacrev, vmap

from noah_lightning.errors import HeadSettingError


class Explanation(NamedTuple):
    """Logits with their parts: ``logits[b, k] == contribution[b, k].sum()``.

    ``contribution`` is how much each position adds to each class. ``attention`` is where each block looks for each
    class; it sums to one over the positions.
    """

    logits: Tensor  # (B, K)
    attention: Tensor  # (B, N, K, L)
    contribution: Tensor  # (B, K, L)


class PooledHead(nn.Module):
    """Pooling, then BatchNorm without parameters if wanted, dropout, and a linear classifier.

    Subclasses implement :meth:`pool`, and state where they come from in :attr:`paper` and :attr:`equation`.

    Args:
        width: D, the number of features that pooling returns.
        num_classes: K.
        batch_norm: standardize the pooled features with the statistics of the batch (running statistics in
            evaluation), as probes of self-supervised features do.
        dropout: probability with which a pooled feature is dropped in training.
    """

    paper = ""
    equation = ""

    def __init__(self, width: int, num_classes: int, batch_norm: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, affine=False) if batch_norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(width, num_classes)

    def pool(self, features: Tensor) -> Tensor:
        """Features (B, C, L) → pooled features (B, D)."""
        raise NotImplementedError

    def classify(self, pooled: Tensor) -> Tensor:
        """Pooled features (B, D) → logits (B, K)."""
        logits: Tensor = self.fc(self.dropout(self.norm(pooled)))
        return logits

    def forward(self, features: Tensor) -> Tensor:
        """Feature map (B, C, L) or (B, C, H, W) → logits (B, K)."""
        return self.classify(self.pool(features.flatten(2)))


class AttentiveHead(PooledHead):
    """Head whose N blocks pool by attention: block n returns the sum over positions of attention times value.

    Subclasses implement :meth:`attend`; those with layers between pooling and classifier override :meth:`classify`.
    """

    def attend(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, C, L) → attention (B, N, L), which sums to one over L, and values (B, N, D/N, L)."""
        raise NotImplementedError

    def pool(self, features: Tensor) -> Tensor:
        attention, values = self.attend(features)
        return (values @ attention.unsqueeze(3)).flatten(1)  # (B, N, D/N, L) @ (B, N, L, 1) -> (B, D)

    def explain(self, features: Tensor) -> Explanation:
        """The logits with the attention and with what each position contributes to each class, in evaluation mode."""
        return linearized(self.classify, *self.attend(features.flatten(2)))


def linearized(after: Callable[..., Tensor], attention: Tensor, values: Tensor, *fixed: Tensor) -> Explanation:
    """Explain the logits that follow from pooling by attention: ``after(pooled, *fixed)``.

    A position contributes attention × value, times the derivative of the logit by the pooled features. What is left
    of the logit (nothing but the bias if only a linear layer follows the pooling; otherwise also what is not linear
    in what follows) is divided among the positions in proportion to the mean attention.

    Args:
        after: pooled features (B, D) and ``fixed`` → logits (B, K), independent for each image.
        attention: (B, N, L).
        values: (B, N, D/N, L).
        fixed: further arguments of ``after``, with B first, that are held constant.
    """
    pooled = (values @ attention.unsqueeze(3)).flatten(1)  # (B, D)
    logits = after(pooled, *fixed)
    slope = jacrev(lambda *image: after(*(tensor[None] for tensor in image))[0])  # of one image
    slopes = vmap(slope)(pooled.detach(), *fixed).unflatten(2, values.shape[1:3])  # (B, K, N, D/N)
    contribution = torch.einsum("bknd,bndl,bnl->bkl", slopes, values, attention)
    rest = logits - contribution.sum(dim=2)  # (B, K)
    share = attention.mean(dim=1, keepdim=True)  # (B, 1, L)
    contribution = contribution + rest.unsqueeze(2) * (share / share.sum(dim=2, keepdim=True))
    per_class = attention.unsqueeze(2).expand(-1, -1, logits.shape[1], -1)  # (B, N, L) -> (B, N, K, L)
    return Explanation(logits, per_class, contribution)


def split_heads(tokens: Tensor, heads: int) -> Tensor:
    """Tokens (B, L, D) → (B, N, D/N, L) for N heads."""
    return tokens.unflatten(2, (heads, -1)).permute(0, 2, 3, 1)


def dot_product_attention(query: Tensor, keys: Tensor) -> Tensor:
    """Attention (B, N, L) of one query per head (B or 1, N, D/N) to keys (B, N, D/N, L), softmax over L."""
    scores = (query.unsqueeze(2) @ keys).squeeze(2)  # (B, N, 1, D/N) @ (B, N, D/N, L)
    return (scores * query.shape[2] ** -0.5).softmax(dim=2)


def split_width(width: int, parts: int, what: str) -> int:
    """``width / parts``; raises HeadSettingError with divisors that would work if there is a remainder."""
    if width % parts:
        divisors = [n for n in range(1, width + 1) if width % n == 0]
        nearest = ", ".join(map(str, sorted(sorted(divisors, key=lambda n: abs(n - parts))[:4])))
        raise HeadSettingError(f"{what}={parts} does not divide the width {width}; use {nearest}")
    return width // parts
