"""NOAH's logits and gradients a few images at a time, in plain PyTorch operations on any device.

The definition makes several tensors of B N K L elements and keeps most of them for the backward pass. Here a slice of
the batch goes through buffers that fit into a processor's cache, nothing of that size outlives its slice, and the
backward pass recomputes scores and values. Half precisions are computed in float32.

Shapes: B images, C channels, L positions, N heads, K classes; the N K rows of a projection stand in G groups (N of
them, or 1 without ``head_split``) of M = N K / G, and each row reads D channels; b images make a slice of the batch.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from math import isclose
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


class Kernel(ABC):
    """What the kernels share: sizes, slices of the batch, and the matrix products of the backward pass.

    A subclass sets ``features`` and ``weights`` in the precision to compute in, ``images``, the most in a slice, and
    ``bits``, how many random bits decide whether a value is dropped.
    """

    bits: int
    images: int

    def __init__(self, features: Tensor, weights: Weights, classes: int, dropout: float, seed: int) -> None:
        self.features, self.weights = features, weights  # (B, C, L)
        self.classes, self.positions = classes, features.shape[2]
        self.heads = weights.value_bias.numel() // classes
        self.groups, self.group_rows, self.key_width = weights.query.shape
        self.value_width = weights.value.shape[2]
        self.generator = torch.Generator(features.device).manual_seed(seed)
        # A value is dropped if its bits, as a number, are below this one; at least one number is not.
        self.drop_below = min(round(dropout * 2**self.bits), 2**self.bits - 1)
        # The mean stays right only with the share that the rounded rate keeps. Where that is within 1e-4
        # of the share as set, the latter is used, so that runs of earlier versions repeat to the last bit.
        kept = 1 - self.drop_below / 2**self.bits
        self.kept_share = 1 - dropout if isclose(kept, 1 - dropout, rel_tol=1e-4) else kept

    @abstractmethod
    def logits(self) -> Tensor:
        """Logits (B, K)."""

    @abstractmethod
    def slopes(self, grad: Tensor, part: slice, x: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of scores and values, (G, M, b L), from those of the slice's logits (b, K) and its columns."""

    def slices(self) -> Iterator[slice]:
        batch = len(self.features)
        for start in range(0, batch, self.images):
            yield slice(start, min(start + self.images, batch))

    def backward(self, grad: Tensor) -> tuple[Tensor, Weights]:
        """Gradients of features and weights, from that of the logits (B, K); sums are in at least float32."""
        grad = grad.to(_sum_type(self.features.dtype)).contiguous()
        grad_features = torch.empty_like(self.features)
        sums = Weights(*(torch.zeros_like(weight, dtype=_sum_type(weight.dtype)) for weight in self.weights))

        def add(part: slice) -> None:  # a function, so that a slice's tensors are freed before the next slice
            x = columns(self.features[part])  # (C, b L)
            grad_scores, grad_values = self.slopes(grad[part], part, x)
            keys, values = self.branches(x)  # (G, D, b L)
            _add_product(sums.query, grad_scores, keys.transpose(1, 2))  # (G, M, b L) (G, b L, Dk)
            _add_product(sums.value, grad_values, values.transpose(1, 2))
            sums.value_bias.add_(grad_values.sum(2, keepdim=True, dtype=sums.value_bias.dtype))
            grad_x = torch.zeros_like(x)
            grad_keys_x, grad_values_x = self.branches(grad_x)  # one and the same without kv_split
            grad_keys_x.baddbmm_(self.weights.query.transpose(1, 2), grad_scores)  # (G, Dk, M) (G, M, b L)
            grad_values_x.baddbmm_(self.weights.value.transpose(1, 2), grad_values)
            grad_features[part] = grad_x.unflatten(1, (-1, self.positions)).transpose(0, 1)  # -> (b, C, L)

        for part in self.slices():
            add(part)
        return grad_features, sums

    def branches(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The views of columns (C, b L) that the two projections read: keys (G, Dk, b L), values (G, Dv, b L)."""
        keys = x[: self.groups * self.key_width].unflatten(0, (self.groups, -1))
        values = x[-self.groups * self.value_width :].unflatten(0, (self.groups, -1))
        return keys, values


class SlicedKernel(Kernel):
    """Three buffers, through which each slice goes."""

    bits = 16  # the fastest source of bits in torch gives 64 at a time

    def __init__(self, features: Tensor, weights: Weights, classes: int, dropout: float, seed: int) -> None:
        dtype = _sum_type(features.dtype)
        weights = Weights(*(weight.to(dtype) for weight in weights))
        super().__init__(features.to(dtype), weights, classes, dropout, seed)
        limit = _CPU_ELEMENTS if features.device.type == "cpu" else _OTHER_ELEMENTS
        elements = self.heads * classes * self.positions  # of an image
        self.images = max(1, min(limit // elements, len(features)))
        self.buffers = features.new_empty((3, self.images * elements), dtype=dtype)
        self.draws = features.new_empty(limit // 32, dtype=torch.int64)

    def logits(self) -> Tensor:
        result = self.features.new_empty((len(self.features), self.classes))
        for part in self.slices():
            attention, values, scores = self.attend(columns(self.features[part]))  # (N, K, b, L)
            if self.drop_below:
                values.mul_(self.kept(scores))
            result[part] = attention.mul_(values).sum(3).sum(0).t()  # (N, K, b) -> (K, b) -> (b, K)
        return result.div_(self.kept_share)

    def slopes(self, grad: Tensor, part: slice, x: Tensor) -> tuple[Tensor, Tensor]:
        attention, values, scores = self.attend(x)  # (N, K, b, L)
        weight = (grad / self.kept_share).t()[None, :, :, None]  # (1, K, b, 1): of attention x value in the loss
        if self.drop_below:
            weight = self.kept(scores).mul_(weight)  # (N, K, b, L)
        grad_scores = values.mul_(weight).mul_(attention)  # through the softmax: a (w v - sum of a w v)
        grad_scores.addcmul_(attention, grad_scores.sum(3, keepdim=True), value=-1)
        return self.rows(grad_scores), self.rows(attention.mul_(weight))

    def attend(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Columns (C, b L) → attention, summing to one over the positions, values, and scores: (N, K, b, L)."""
        keys_x, values_x = self.branches(x)  # (G, D, b L)
        scores, attention, values = self.buffers[:, : self.heads * self.classes * x.shape[1]].unflatten(
            1, (self.heads, self.classes, -1, self.positions)
        )
        torch.bmm(self.weights.query, keys_x, out=self.rows(scores))
        torch.softmax(scores, 3, out=attention)
        torch.baddbmm(self.weights.value_bias, self.weights.value, values_x, out=self.rows(values))
        return attention, values, scores

    def rows(self, of_heads: Tensor) -> Tensor:
        """(N, K, b, L) → the same as rows of the projections (G, M, b L)."""
        return of_heads.view(self.groups, self.group_rows, -1)

    def kept(self, scores: Tensor) -> Tensor:
        """1 for values that are kept, 0 for dropped ones: the next draw, in place of the scores (N, K, b, L)."""
        for some in scores.view(-1).split(4 * len(self.draws)):
            draws = self.draws.random_(-(2**63), None, generator=self.generator).view(torch.int16)[: len(some)]
            # As signed numbers; straight to floats, without a tensor of bools between.
            torch.ge(draws, self.drop_below - 2**15, out=some)
        return scores


def columns(features: Tensor) -> Tensor:
    """(b, C, L) → (C, b L); no copy where the channels stand innermost."""
    return features.transpose(0, 1).flatten(1)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """``total += left @ right``, also where the sum is kept in a higher precision."""
    if total.dtype == left.dtype:
        total.baddbmm_(left, right)
    else:
        total += torch.bmm(left, right)


def _sum_type(dtype: torch.dtype) -> torch.dtype:
    """The precision of long sums: float32, or float64 where all is float64."""
    return torch.promote_types(dtype, torch.float32)
