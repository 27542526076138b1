"""The arithmetic of NOAH without tensors of B N K L elements: one operator, two kernels."""

from importlib.util import find_spec

import torch
from torch import Tensor, nn

from noah_lightning.errors import HeadSettingError
from noah_lightning.heads.kernels.operator import logits

__all__ = ["non_global_attention"]

_MOST_POSITIONS = 1024  # that the fused kernel holds on chip
_HAS_TRITON = find_spec("triton") is not None
_HALF = (torch.bfloat16, torch.float16)


def non_global_attention(
    features: Tensor, query: nn.Conv2d, value: nn.Conv2d, classes: int, dropout: float, kernel: str
) -> Tensor:
    """Logits (B, K) from features (B, C, L), as the definition in ``NOAHHead`` has them.

    Args:
        features: (B, C, L).
        query, value: the 1x1 convolutions of keys and values.
        classes: K.
        dropout: probability with which a value is dropped now; dropped ones are drawn with torch's CPU generator.
        kernel: ``fused``, ``sliced``, or ``auto``, which is fused on a GPU in half precision.

    Raises:
        HeadSettingError: ``fused`` where it cannot be.
    """
    obstacle = _obstacle(features)
    if kernel == "fused" and obstacle:
        raise HeadSettingError(f"NOAH: kernel=fused {obstacle}; kernel=auto takes it where it can")
    # Not in float32: tensor cores would round, and without them torch's own matrix products are the faster ones.
    fused = kernel == "fused" or (kernel == "auto" and not obstacle and _precision(features) in _HALF)
    if fused:
        features = features.to(_precision(features))
    seed = torch.randint(2**62, ()) if dropout else torch.zeros((), dtype=torch.int64)
    return logits(
        features, query.weight, query.bias, value.weight, value.bias, query.groups, classes, dropout, seed, fused
    )


def _precision(features: Tensor) -> torch.dtype:
    """That of autocast, where it is on."""
    device = features.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else features.dtype


def _obstacle(features: Tensor) -> str:
    """Why the fused kernel cannot be, or nothing."""
    if not features.is_cuda:
        return "needs a GPU"
    if not _HAS_TRITON:
        return "needs Triton"
    if features.dtype not in (*_HALF, torch.float32):
        return f"does not know {features.dtype}"
    if features.shape[2] > _MOST_POSITIONS:
        return f"holds {_MOST_POSITIONS} positions at most, not {features.shape[2]}"
    return ""
