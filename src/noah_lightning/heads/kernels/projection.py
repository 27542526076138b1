"""The two projections of NOAH, from channels to scores and values, as matrix products batched over groups.

Shapes: B images, C channels, L positions, N heads, K classes; the N K rows of a projection stand in G groups (N of
them, or 1 without ``head_split``) of M = N K / G, and each row reads D channels; b images make a slice of the batch.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor


class Weights(NamedTuple):
    """The parameters that matter. The bias of the keys shifts all positions alike and cancels in the softmax."""

    query: Tensor  # (G, M, Dk)
    value: Tensor  # (G, M, Dv)
    value_bias: Tensor  # (G, M, 1)


def columns(features: Tensor) -> Tensor:
    """(b, C, L) → (C, b L); no copy where the channels stand innermost."""
    return features.transpose(0, 1).flatten(1)


def branches(columns: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
    """The views of (C, b L) that the two projections read: keys (G, Dk, b L), values (G, Dv, b L)."""
    groups, _, key_width = weights.query.shape
    value_width = weights.value.shape[2]
    keys = columns[: groups * key_width].unflatten(0, (groups, key_width))
    values = columns[-groups * value_width :].unflatten(0, (groups, value_width))
    return keys, values


def gradients(
    features: Tensor,
    weights: Weights,
    slices: Iterable[slice],
    slopes: Callable[[slice, Tensor], tuple[Tensor, Tensor]],
) -> tuple[Tensor, Weights]:
    """Gradients of features and weights, added up over slices of the batch.

    Args:
        features: (B, C, L), in the precision to compute in.
        weights: in the same precision; sums over slices are kept in at least float32.
        slices: that make up the batch.
        slopes: from a slice and its columns (C, b L) the gradients of its scores and values, both (G, M, b L).
    """
    grad_features = torch.empty_like(features)
    sums = Weights(*(torch.zeros_like(weight, dtype=sum_type(weight.dtype)) for weight in weights))

    def add(part: slice) -> None:  # a function, so that nothing of a slice is there when the next one begins
        x = columns(features[part])  # (C, b L)
        grad_scores, grad_values = slopes(part, x)
        keys, values = branches(x, weights)  # (G, D, b L)
        _add_product(sums.query, grad_scores, keys.transpose(1, 2))  # (G, M, b L) (G, b L, Dk)
        _add_product(sums.value, grad_values, values.transpose(1, 2))
        sums.value_bias.add_(grad_values.sum(2, keepdim=True, dtype=sums.value_bias.dtype))
        grad_x = torch.zeros_like(x)
        grad_keys_x, grad_values_x = branches(grad_x, weights)  # one and the same without kv_split
        grad_keys_x.baddbmm_(weights.query.transpose(1, 2), grad_scores)  # (G, Dk, M) (G, M, b L)
        grad_values_x.baddbmm_(weights.value.transpose(1, 2), grad_values)
        grad_features[part] = grad_x.unflatten(1, (-1, features.shape[2])).transpose(0, 1)  # -> (b, C, L)

    for part in slices:
        add(part)
    return grad_features, sums


def sum_type(dtype: torch.dtype) -> torch.dtype:
    """The precision of long sums: float32, or float64 where all is float64."""
    return torch.promote_types(dtype, torch.float32)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """``total += left @ right``, also where the sum is kept in a higher precision."""
    if total.dtype == left.dtype:
        total.baddbmm_(left, right)
    else:
        total += torch.bmm(left, right)
