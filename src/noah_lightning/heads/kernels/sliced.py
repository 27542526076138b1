"""NOAH's logits and gradients a few images at a time, in plain PyTorch operations on any device.

The definition makes several tensors of B N K L elements and keeps most of them for the backward pass. Here a slice of
the batch goes through buffers that fit into a processor's cache, nothing of that size outlives its slice, and the
backward pass computes scores and values once more. Half precisions are computed in float32.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from noah_lightning.heads.kernels.projection import Weights, branches, columns, gradients, sum_type

# Elements of a buffer: on a CPU three of them stay in its cache, a GPU wants work for all its cores at once.
_CPU_ELEMENTS, _OTHER_ELEMENTS = 2**19, 2**24


def logits(features: Tensor, weights: Weights, classes: int, dropout: float, seed: int) -> Tensor:
    """Logits (B, K) from features (B, C, L)."""
    work = _Slices(features, weights, classes, dropout, seed)
    result = features.new_empty((len(features), classes), dtype=work.features.dtype)
    for part in work:
        attention, values, scores = work.attend(columns(work.features[part]))  # (N, K, b, L)
        if dropout:
            values.mul_(work.kept(scores))
        result[part] = attention.mul_(values).sum(3).sum(0).t()  # (N, K, b) -> (K, b) -> (b, K)
    return result.div_(1 - dropout)


def backward(grad: Tensor, features: Tensor, weights: Weights, dropout: float, seed: int) -> tuple[Tensor, Weights]:
    """Gradients of features and weights, from that of the logits (B, K)."""
    work = _Slices(features, weights, grad.shape[1], dropout, seed)
    grad = grad.to(work.features.dtype) / (1 - dropout)

    def slopes(part: slice, x: Tensor) -> tuple[Tensor, Tensor]:
        attention, values, scores = work.attend(x)  # (N, K, b, L)
        weight = grad[part].t()[None, :, :, None]  # (1, K, b, 1): of attention x value in the loss
        if dropout:
            weight = work.kept(scores).mul_(weight)  # (N, K, b, L)
        grad_scores = values.mul_(weight).mul_(attention)  # through the softmax: a (w v - sum of a w v)
        grad_scores.addcmul_(attention, grad_scores.sum(3, keepdim=True), value=-1)
        return work.rows(grad_scores), work.rows(attention.mul_(weight))

    return gradients(work.features, work.weights, work, slopes)


class _Slices:
    """The slices of a batch, and the three buffers that each goes through."""

    def __init__(self, features: Tensor, weights: Weights, classes: int, dropout: float, seed: int) -> None:
        dtype = sum_type(features.dtype)
        self.features = features.to(dtype)
        self.weights = Weights(*(weight.to(dtype) for weight in weights))
        rows = weights.value_bias.numel()  # N K
        self.heads, self.classes, self.positions = rows // classes, classes, features.shape[2]
        limit = _CPU_ELEMENTS if features.device.type == "cpu" else _OTHER_ELEMENTS
        self.images = min(max(1, limit // (rows * self.positions)), len(features))  # of a slice
        size = self.images * rows * self.positions
        self.buffers = features.new_empty((3, size), dtype=dtype)
        # 16 bits for each value; the fastest source of bits in torch gives 64 at a time
        self.draws = features.new_empty(limit // 32, dtype=torch.int64)
        self.generator = torch.Generator(features.device).manual_seed(seed)
        self.first_kept = round(dropout * 2**16) - 2**15  # of 16 bits read as a signed number

    def __iter__(self) -> Iterator[slice]:
        for start in range(0, len(self.features), self.images):
            yield slice(start, min(start + self.images, len(self.features)))

    def attend(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Columns (C, b L) → attention, summing to one over the positions, values, and scores: (N, K, b, L)."""
        keys_x, values_x = branches(x, self.weights)  # (G, D, b L)
        scores, attention, values = self.buffers[:, : self.heads * self.classes * x.shape[1]].unflatten(
            1, (self.heads, self.classes, -1, self.positions)
        )
        torch.bmm(self.weights.query, keys_x, out=self.rows(scores))
        torch.softmax(scores, 3, out=attention)
        torch.baddbmm(self.weights.value_bias, self.weights.value, values_x, out=self.rows(values))
        return attention, values, scores

    def rows(self, of_heads: Tensor) -> Tensor:
        """(N, K, b, L) → the same as rows of the projections (G, M, b L)."""
        groups, rows, _ = self.weights.value_bias.shape
        return of_heads.view(groups, rows, -1)

    def kept(self, scores: Tensor) -> Tensor:
        """1 for values that are kept, 0 for dropped ones: the next draw, in place of the scores (N, K, b, L)."""
        for some in scores.view(-1).split(4 * len(self.draws)):
            draws = self.draws.random_(-(2**63), None, generator=self.generator).view(torch.int16)[: len(some)]
            torch.ge(draws, self.first_kept, out=some)  # straight to numbers, without a tensor of bools between
        return scores
