"""NOAH's logits as one operator of torch, without tensors of B N K L elements, computed by one of two kernels.

The operator is opaque to autograd and to ``torch.compile``. It keeps the feature map and the weights for the backward
pass and nothing else. There is no second derivative.
"""

from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.flop_counter import register_flop_formula

from noah_lightning.errors import HeadSettingError
from noah_lightning.heads.kernels.sliced import Kernel, SlicedKernel, Weights

__all__ = ["needs_definition", "non_global_attention"]

_MOST_POSITIONS = 1024  # that the fused kernel holds on chip
_HAS_TRITON = find_spec("triton") is not None
_HALF = (torch.bfloat16, torch.float16)


def needs_definition(kernel: str) -> bool:
    """Whether the definition computes the logits: if set, and with ``auto`` where an operator of our own cannot.

    Raises:
        HeadSettingError: kernel ``sliced`` or ``fused`` within torch.func or forward-mode derivatives, where torch
            would raise an internal error or, worse, return derivatives of zero.
    """
    if kernel == "definition":
        return True
    transformed = torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    if kernel == "auto":  # an exported or traced model consists of torch's own operators and needs no package
        return transformed or torch.compiler.is_exporting() or torch.jit.is_tracing()
    if transformed:
        raise HeadSettingError(
            f"NOAH: kernel={kernel} has no torch.func transforms and no forward-mode derivatives; "
            "use kernel=definition, or auto"
        )
    return False


def non_global_attention(
    features: Tensor, query: nn.Conv2d, value: nn.Conv2d, classes: int, dropout: float, kernel: str
) -> Tensor:
    """Logits (B, K) of ``NOAHHead`` from features (B, C, L) and the 1x1 convolutions of keys and values.

    Dropped values are drawn with torch's CPU generator.

    Raises:
        HeadSettingError: kernel ``fused`` where it cannot run.
    """
    obstacle = _obstacle(features)
    if kernel == "fused" and obstacle:
        raise HeadSettingError(f"NOAH: kernel=fused {obstacle}; kernel=auto uses it where it can run")
    # Not in float32: tensor cores would round, and without them torch's own matrix products are the faster ones.
    fused = kernel == "fused" or (kernel == "auto" and not obstacle and _precision(features) in _HALF)
    if fused:
        features = features.to(_precision(features))
    seed = torch.randint(2**62, ()) if dropout else torch.zeros((), dtype=torch.int64)
    return logits(
        features, query.weight, query.bias, value.weight, value.bias, query.groups, classes, dropout, seed, fused
    )


def _precision(features: Tensor) -> torch.dtype:
    """That of autocast, where it is on; not for the meta device, which autocast does not have."""
    device = features.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else features.dtype


def _obstacle(features: Tensor) -> str:
    """Why the fused kernel cannot run, or nothing."""
    if not features.is_cuda:
        return "needs a GPU"
    if not _HAS_TRITON:
        return "needs Triton"
    if features.dtype not in (*_HALF, torch.float32):
        return f"does not support {features.dtype}"
    if features.shape[2] > _MOST_POSITIONS:
        return f"supports at most {_MOST_POSITIONS} positions, not {features.shape[2]}"
    return ""


@torch.library.custom_op("noah::logits", mutates_args=())
def logits(
    features: Tensor,
    query: Tensor,
    query_bias: Tensor,
    value: Tensor,
    value_bias: Tensor,
    groups: int,
    classes: int,
    dropout: float,
    seed: Tensor,
    fused: bool,
) -> Tensor:
    """Logits (B, K).

    Args:
        features: (B, C, L).
        query, value: weights of the 1x1 convolutions, (N K, D, 1, 1), in G groups.
        query_bias, value_bias: (N K,). The former cancels in the softmax; its gradient is exactly zero.
        groups, classes: G and K.
        dropout: probability with which a value is dropped.
        seed: int64 on the CPU, without dimensions; the same seed drops the same values.
        fused: whether Triton's kernel does the work, in the precision of the features.
    """
    with torch.autocast(features.device.type, enabled=False):
        kernel = _kernel(features, (query, value, value_bias), groups, classes, dropout, seed, fused)
        return kernel.logits().to(value_bias.dtype)


@torch.library.custom_op("noah::logits_backward", mutates_args=())
def logits_backward(
    grad: Tensor,
    features: Tensor,
    query: Tensor,
    value: Tensor,
    value_bias: Tensor,
    groups: int,
    dropout: float,
    seed: Tensor,
    fused: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of features, query, value and value_bias from that of the logits, (B, K)."""
    weights = query, value, value_bias
    with torch.autocast(features.device.type, enabled=False):
        kernel = _kernel(features, weights, groups, grad.shape[1], dropout, seed, fused)
        grad_features, sums = kernel.backward(grad)
    grad_query, grad_value, grad_bias = (
        torch.empty_like(weight).copy_(total.view(weight.shape)) for total, weight in zip(sums, weights, strict=True)
    )
    return grad_features.to(features.dtype), grad_query, grad_value, grad_bias


def _kernel(
    features: Tensor, weights: Iterable[Tensor], groups: int, classes: int, dropout: float, seed: Tensor, fused: bool
) -> Kernel:
    grouped = Weights(*(weight.reshape(groups, -1, weight[0].numel()) for weight in weights))
    if not fused:
        return SlicedKernel(features, grouped, classes, dropout, int(seed))
    from noah_lightning.heads.kernels.fused import FusedKernel  # imports Triton

    return FusedKernel(features, grouped, classes, dropout, int(seed))


@logits.register_fake
def _(features, query, query_bias, value, value_bias, groups, classes, dropout, seed, fused):  # type: ignore[no-untyped-def]
    return features.new_empty((features.shape[0], classes), dtype=value_bias.dtype)


@logits_backward.register_fake
def _(grad, features, query, value, value_bias, groups, dropout, seed, fused):  # type: ignore[no-untyped-def]
    return tuple(torch.empty_like(tensor) for tensor in (features, query, value, value_bias))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    features, query, _, value, value_bias, ctx.groups, _, ctx.dropout, seed, ctx.fused = inputs
    ctx.save_for_backward(features, query, value, value_bias, seed)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, seed = ctx.saved_tensors
    grads = logits_backward(grad, *tensors, ctx.groups, ctx.dropout, seed, ctx.fused)
    grad_features, grad_query, grad_value, grad_bias = grads
    return grad_features, grad_query, torch.zeros_like(grad_bias), grad_value, grad_bias, *[None] * 5


def _no_second_derivative(ctx: Any, *grads: Tensor) -> None:
    raise RuntimeError("NOAH has a second derivative with kernel='definition' only")


logits.register_autograd(_differentiate, setup_context=_keep)
logits_backward.register_autograd(_no_second_derivative)


@register_flop_formula(torch.ops.noah.logits)
def _flops(features, query, query_bias, value, *args, **kwargs):  # type: ignore[no-untyped-def]
    """Two per multiply-add of both projections, counted as for the convolutions of the definition."""
    (batch, _, positions), (rows, key_width, *_) = features, query
    return 2 * batch * positions * rows * (key_width + value[1])


@register_flop_formula(torch.ops.noah.logits_backward)
def _backward_flops(grad, features, query, value, *args, **kwargs):  # type: ignore[no-untyped-def]
    """The forward pass again, then the gradients of weights and features."""
    return 3 * _flops(features, query, None, value)
