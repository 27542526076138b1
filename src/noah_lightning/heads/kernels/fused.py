"""NOAH's logits and gradients with Triton: a tile of classes against all positions stays in a GPU's registers.

Going forward nothing larger than the logits of each head leaves the chip. Going backward attention and values are
recomputed, and what is written out, a slice of the batch at a time, are the gradients of scores and values,
for torch's own matrix products to finish.

Shapes: B images, C channels, L positions, N heads, K classes, D channels that a row of a projection reads.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from noah_lightning.heads.kernels.sliced import Kernel, Weights

_TILE = 2**13  # elements: scores and values of that many, and what comes of them, fit into the registers
_SLICE = 2**23  # elements of each of the two gradients that are in memory at a time


class FusedKernel(Kernel):
    """Sizes and tiles of Triton's kernel, and the keys from which dropped values are drawn."""

    bits = 32

    def __init__(self, features: Tensor, weights: Weights, classes: int, dropout: float, seed: int) -> None:
        batch, channels, positions = features.shape
        weights = Weights(weights.query.to(features.dtype), weights.value.to(features.dtype), weights.value_bias)
        super().__init__(features, weights, classes, dropout, seed)
        images = _SLICE // (self.heads * classes * positions)
        self.images = max(1, min(images // 8 * 8, batch))  # of 8, so that rows of b L elements are aligned
        self.keys = torch.empty((batch, self.heads), dtype=torch.int64, device=features.device)
        self.keys.random_(-(2**63), None, generator=self.generator)
        block_d = max(16, triton.next_power_of_2(min(self.key_width, self.value_width)))
        block_l = max(16, triton.next_power_of_2(positions))
        self.block_k = max(16, min(triton.next_power_of_2(classes), _TILE // block_l, 128))
        self.settings = {
            "heads": self.heads,
            "classes": classes,
            "positions": positions,
            "key_width": self.key_width,
            "value_width": self.value_width,
            "first_value": channels - self.groups * self.value_width,
            "drop_below": self.drop_below,
            "scale": 1 / self.kept_share,
            "SPLIT": self.groups > 1,
            "DROPOUT": self.drop_below > 0,
            "BLOCK_K": self.block_k,
            "BLOCK_L": block_l,
            "BLOCK_D": min(block_d, 64 if block_l <= 64 else 32),
            "num_warps": max(4, self.block_k * block_l // 1024),  # 32 elements of a tile for each thread
        }

    def logits(self) -> Tensor:
        logits = self.features.new_empty((len(self.features), self.heads, self.classes), dtype=torch.float32)
        self.launch(slice(None), logits, None, None, None)
        return logits.sum(1)

    def slopes(self, grad: Tensor, part: slice, x: Tensor) -> tuple[Tensor, Tensor]:
        shape = self.groups, self.group_rows, x.shape[1]  # (G, M, b L), which is (N, K, b, L) in memory
        grad_scores = x.new_empty(shape)
        grad_values = x.new_empty(shape)
        self.launch(part, None, grad, grad_scores, grad_values)
        return grad_scores, grad_values

    def launch(self, part: slice, *tensors: Tensor | None) -> None:
        some = self.features[part]
        grid = (triton.cdiv(self.classes, self.block_k), self.heads, len(some))
        _attention_kernel[grid](self.keys[part], *tensors, some, *some.stride(), *self.weights, **self.settings)


@triton.jit
def _attention_kernel(
    keys_ptr, logits_ptr,  # (b, N); (b, N, K), written going forward and None going backward
    grad_ptr, grad_scores_ptr, grad_values_ptr,  # None going forward; (b, K); both (N, K, b, L), written
    features_ptr, stride_b, stride_c, stride_l,  # (b, C, L)
    query_ptr, value_ptr, bias_ptr,  # (N K, Dk); (N K, Dv); (N K,)
    heads, classes, positions, key_width, value_width, first_value, drop_below, scale,
    SPLIT: tl.constexpr, DROPOUT: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Logits of one image and head for BLOCK_K classes, or the gradients of their scores and values."""
    tile, head, image = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    k = tile * BLOCK_K + tl.arange(0, BLOCK_K)
    at = tl.arange(0, BLOCK_L)
    features_ptr += image * stride_b
    group = head if SPLIT else 0
    key_channels = features_ptr + group * key_width * stride_c
    value_channels = features_ptr + (first_value + group * value_width) * stride_c
    row = head * classes + k
    scores = _project(
        query_ptr, key_channels, row, k < classes, at, positions, key_width, stride_c, stride_l,
        BLOCK_K, BLOCK_L, BLOCK_D,
    )  # fmt: skip
    scores = tl.where(at[None, :] < positions, scores, float("-inf"))
    attention = tl.exp(scores - tl.max(scores, axis=1)[:, None])
    attention /= tl.sum(attention, axis=1)[:, None]
    values = _project(
        value_ptr, value_channels, row, k < classes, at, positions, value_width, stride_c, stride_l,
        BLOCK_K, BLOCK_L, BLOCK_D,
    )  # fmt: skip
    values += tl.load(bias_ptr + row, mask=k < classes, other=0.0).to(tl.float32)[:, None]
    kept = tl.full((BLOCK_K, BLOCK_L), 1, tl.int1)
    if DROPOUT:
        key = tl.load(keys_ptr + image * heads + head)
        kept = _draw(key, k[:, None] * positions + at[None, :]) >= drop_below
    if logits_ptr is not None:
        if DROPOUT:
            values = tl.where(kept, values, 0.0)
        logits = tl.sum(attention * values, axis=1) * scale
        tl.store(logits_ptr + (image * heads + head) * classes + k, logits, mask=k < classes)
    else:
        grad = tl.load(grad_ptr + image * classes + k, mask=k < classes, other=0.0) * scale
        weight = grad[:, None]  # of attention x value in the loss
        if DROPOUT:
            weight = tl.where(kept, weight, 0.0)
        weighted = values * weight
        grad_scores = attention * (weighted - tl.sum(attention * weighted, axis=1)[:, None])
        grad_values = attention * weight
        column = row.to(tl.int64) * tl.num_programs(2) + image  # of (head, class) and image
        inside = (k < classes)[:, None] & (at < positions)[None, :]
        offsets = column[:, None] * positions + at[None, :]
        tl.store(grad_scores_ptr + offsets, grad_scores, mask=inside)
        tl.store(grad_values_ptr + offsets, grad_values, mask=inside)


@triton.jit
def _project(
    weight_ptr, x_ptr, row, row_inside, at, positions, width, stride_c, stride_l,
    BLOCK_K: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """(BLOCK_K, D) weights times (D, BLOCK_L) features, summed in float32."""
    total = tl.zeros((BLOCK_K, BLOCK_L), dtype=tl.float32)
    for start in range(0, width, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        weight = tl.load(
            weight_ptr + row[:, None] * width + d[None, :],
            mask=row_inside[:, None] & (d < width)[None, :],
            other=0.0,
        )
        x = tl.load(
            x_ptr + d[:, None] * stride_c + at[None, :] * stride_l,
            mask=(d < width)[:, None] & (at < positions)[None, :],
            other=0.0,
        )
        total = tl.dot(weight, x, total, input_precision="ieee")
    return total


@triton.jit
def _draw(key, count):
    """32 random bits for each count: an integer hash, keyed before and within by the halves of a 64-bit key."""
    bits = count.to(tl.uint32) * 0x9E3779B1 + key.to(tl.uint32)
    bits = (bits ^ (bits >> 16)) * 0x21F0AAAD + (key >> 32).to(tl.uint32)
    bits = (bits ^ (bits >> 15)) * 0x735A2D97
    return bits ^ (bits >> 15)
