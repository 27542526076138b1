"""NOAH's logits and gradients a few images at a time, in plain PyTorch operations on any device.

The definition makes several tensors of B N K L elements and keeps most of them for the backward pass. Here a slice of
the batch goes through buffers that fit into a processor's cache, nothing of that size outlives its slice, and the
backward pass recomputes scores and values. Half precisions are computed in float32.

Shapes: B images, C channels, L positions, N heads, K classes; the N K rows of a projection stand in G groups (N of
them, or 1 without ``head_split``) of M = N K / G, and each row reads D channels; b images make a slice of the batch.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

# Elements of a buffer: on a CPU three of them stay in its cache, a GPU wants work for all its cores at once.
_CPU_ELEMENTS, _OTHER_ELEMENTS = 2**19, 2**24


class Weights(NamedTuple):
    """The parameters that matter. The bias of the keys shifts all positions alike and cancels in the softmax."""

    query: Tensor  # (G, M, Dk)
    value: Tensor  # (G, M, Dv)
    value_bias: Tensor  # (G, M, 1)


def logits(features: Tensor, weights: Weights, classes: int, dropout: float, seed: int) -> Tensor:
    """Logits (B, K) from features (B, C, L)."""
    work = _Slices(features, weights, classes, dropout, seed)
    result = features.new_empty((len(features), classes), dtype=work.features.dtype)
    for part in work:
        attention, values, scores = work.attend(_columns(work.features[part]))  # (N, K, b, L)
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
        dtype = _sum_type(features.dtype)
        self.features = features.to(dtype)
        self.weights = Weights(*(weight.to(dtype) for weight in weights))
        rows = weights.value_bias.numel()  # N K
        self.heads, self.classes, self.positions = rows // classes, classes, features.shape[2]
        limit = _CPU_ELEMENTS if features.device.type == "cpu" else _OTHER_ELEMENTS
        self.images = min(max(1, limit // (rows * self.positions)), len(features))  # of a slice
        self.buffers = features.new_empty((3, self.images * rows * self.positions), dtype=dtype)
        # 16 bits for each value; the fastest source of bits in torch gives 64 at a time
        self.draws = features.new_empty(limit // 32, dtype=torch.int64)
        self.generator = torch.Generator(features.device).manual_seed(seed)
        self.first_kept = round(dropout * 2**16) - 2**15  # of 16 bits read as a signed number

    def __iter__(self) -> Iterator[slice]:
        for start in range(0, len(self.features), self.images):
            yield slice(start, min(start + self.images, len(self.features)))

    def attend(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Columns (C, b L) → attention, summing to one over the positions, values, and scores: (N, K, b, L)."""
        keys_x, values_x = _branches(x, self.weights)  # (G, D, b L)
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


def gradients(
    features: Tensor,
    weights: Weights,
    slices: Iterable[slice],
    slopes: Callable[[slice, Tensor], tuple[Tensor, Tensor]],
) -> tuple[Tensor, Weights]:
    """Gradients of features and weights, added up over slices of the batch; the fused kernel uses it too.

    Args:
        features: (B, C, L), in the precision to compute in.
        weights: in the same precision; sums over slices are kept in at least float32.
        slices: that make up the batch.
        slopes: from a slice and its columns (C, b L) the gradients of its scores and values, both (G, M, b L).
    """
    grad_features = torch.empty_like(features)
    sums = Weights(*(torch.zeros_like(weight, dtype=_sum_type(weight.dtype)) for weight in weights))

    def add(part: slice) -> None:  # a function, so that a slice's tensors are freed before the next slice
        x = _columns(features[part])  # (C, b L)
        grad_scores, grad_values = slopes(part, x)
        keys, values = _branches(x, weights)  # (G, D, b L)
        _add_product(sums.query, grad_scores, keys.transpose(1, 2))  # (G, M, b L) (G, b L, Dk)
        _add_product(sums.value, grad_values, values.transpose(1, 2))
        sums.value_bias.add_(grad_values.sum(2, keepdim=True, dtype=sums.value_bias.dtype))
        grad_x = torch.zeros_like(x)
        grad_keys_x, grad_values_x = _branches(grad_x, weights)  # one and the same without kv_split
        grad_keys_x.baddbmm_(weights.query.transpose(1, 2), grad_scores)  # (G, Dk, M) (G, M, b L)
        grad_values_x.baddbmm_(weights.value.transpose(1, 2), grad_values)
        grad_features[part] = grad_x.unflatten(1, (-1, features.shape[2])).transpose(0, 1)  # -> (b, C, L)

    for part in slices:
        add(part)
    return grad_features, sums


def _columns(features: Tensor) -> Tensor:
    """(b, C, L) → (C, b L); no copy where the channels stand innermost."""
    return features.transpose(0, 1).flatten(1)


def _branches(columns: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
    """The views of (C, b L) that the two projections read: keys (G, Dk, b L), values (G, Dv, b L)."""
    groups, _, key_width = weights.query.shape
    value_width = weights.value.shape[2]
    keys = columns[: groups * key_width].unflatten(0, (groups, key_width))
    values = columns[-groups * value_width :].unflatten(0, (groups, value_width))
    return keys, values


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """``total += left @ right``, also where the sum is kept in a higher precision."""
    if total.dtype == left.dtype:
        total.baddbmm_(left, right)
    else:
        total += torch.bmm(left, right)


def _sum_type(dtype: torch.dtype) -> torch.dtype:
    """The precision of long sums: float32, or float64 where all is float64."""
    return torch.promote_types(dtype, torch.float32)
