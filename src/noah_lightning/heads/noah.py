"""NOAH: the Non-glObal Attentive Head (arXiv 2402.02377, section 3).

Shapes: B images, C channels, L positions, N heads (``head_num``), K classes.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from noah_lightning.config.choices import PositiveInt
from noah_lightning.config.heads import NoahHeadSettings
from noah_lightning.config.parsing import parse
from noah_lightning.errors import ConfigError, HeadSettingError
from noah_lightning.heads import register_head
from noah_lightning.heads.base import Explanation
from noah_lightning.heads.kernels import needs_definition, non_global_attention

_AUTOCAST_DTYPES = {torch.float32, torch.bfloat16, torch.float16}


@register_head("noah")
class NOAHHead(nn.Module):
    """N attention blocks that attend, for every class of their own, over the positions of the feature map.

    The first ``int(C * key_ratio)`` channels are keys, the rest values. Both are split into N groups; a 1x1
    convolution turns each group into K maps. A softmax over the positions makes the key maps attention, and

        logit[k] = sum over heads n and positions l of  attention[n, k, l] * dropout(value[n, k, l]).

    Parameter names and shapes are the official release's, so its checkpoints load as they are.

    Args:
        in_channels: width C of the feature map.
        num_classes: K.
        head_num: N, the number of attention blocks.
        key_ratio: r in (0, 1), the share of channels that are keys; unused without ``kv_split``.
        dropout: probability with which a value is dropped while training (the official place: the values); sliced
            and fused round it to 16 and 32 bits, and scale by what is kept.
        head_split: each block reads its own 1/N of the channels; False: every block reads them all.
        kv_split: keys and values read separate channels; False: both read all C.
        init: starting weights of both convolutions (biases start at zero). ``official`` is Kaiming-normal by
            fan-out, std sqrt(2 / (N K)); ``lecun`` is normal by fan-in, which the official Mixer and gMLP
            use; ``small`` is normal with std 0.02, which keeps the attention soft when K is small; ``average``
            is for few classes at any width: zero query weights, so the attention starts as average pooling, and
            normal values with std 0.1 / sqrt(N fan_in). N fan_in is the number of channels that a logit sums over,
            so its variance is 0.01 of the mean square of the pooled features, and the loss starts near log K.
        kernel: how the logits are computed, all to the same result: ``definition`` as the equation stands, ``sliced``
            a few images at a time without large tensors, ``fused`` by Triton on a GPU; ``auto`` is fused on a GPU
            in half precision and sliced anywhere else, but the definition where those two cannot work: within
            torch.func and forward-mode derivatives, and when exported or traced. Only the definition has a second
            derivative.

    Raises:
        HeadSettingError: (a ``ValueError``) settings that cannot work, with settings that do for this width.
        ValueError: (when called) features of another shape, without positions, or not of the parameters' dtype.
    """

    paper = "arXiv 2402.02377"
    equation = "y_k = Σ_n Σ_l softmax_l(q_nk·x_l) v_nk·x_l"

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        head_num: int = 4,
        key_ratio: float = 0.5,
        dropout: float = 0.0,
        head_split: bool = True,
        kv_split: bool = True,
        init: Literal["official", "lecun", "small", "average"] = "official",
        kernel: Literal["auto", "fused", "sliced", "definition"] = "auto",
    ) -> None:
        super().__init__()
        values: dict[str, object] = {"in_channels": in_channels, "num_classes": num_classes, "head_num": head_num}
        values |= {"key_ratio": key_ratio, "dropout": dropout, "head_split": head_split, "kv_split": kv_split}
        try:
            settings = parse(_Settings, {**values, "init": init, "kernel": kernel})
            settings.check_width()
        except ConfigError as error:
            raise HeadSettingError(f"NOAH: {error}") from None
        self.num_classes = num_classes
        self.head_num = head_num
        self.kv_split = kv_split
        self.key_channels, self.value_channels = _split_channels(in_channels, key_ratio, kv_split)
        groups = head_num if head_split else 1
        self.query = nn.Conv2d(self.key_channels, head_num * num_classes, kernel_size=1, groups=groups)
        self.value = nn.Conv2d(self.value_channels, head_num * num_classes, kernel_size=1, groups=groups)
        self.dropout = nn.Dropout(dropout)
        self.init = init
        self.kernel = kernel
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new starting weights by the rule ``init``."""
        for conv in (self.query, self.value):
            fan_in = conv.weight[0].numel()
            if self.init == "official":
                nn.init.kaiming_normal_(conv.weight, mode="fan_out")
            elif self.init == "average" and conv is self.query:
                nn.init.zeros_(conv.weight)  # blocks start equal in attention; their random values tell them apart
            else:
                std = {"lecun": fan_in**-0.5, "small": 0.02, "average": 0.1 * (self.head_num * fan_in) ** -0.5}
                nn.init.normal_(conv.weight, std=std[self.init])
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]  # both convolutions have one

    def forward(self, features: Tensor) -> Tensor:
        """Feature map (B, C, L) or (B, C, H, W) → logits (B, K), in the parameters' dtype, also under autocast."""
        features = self._flat(features)  # (B, C, L)
        if needs_definition(self.kernel):
            attention, value = self._attend(features)
            return (attention * value).sum(dim=(1, 3), dtype=attention.dtype)  # (B, N, K, L) -> (B, K)
        dropout = self.dropout.p if self.training else 0.0
        return non_global_attention(features, self.query, self.value, self.num_classes, dropout, self.kernel)

    def explain(self, features: Tensor) -> Explanation:
        """The logits together with the attention and with what each position contributes to each class."""
        attention, value = self._attend(self._flat(features))
        contribution = (attention * value).sum(dim=1, dtype=attention.dtype)  # (B, N, K, L) -> (B, K, L)
        return Explanation(contribution.sum(dim=2), attention, contribution)

    def _attend(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """The definition: (B, C, L) → attention (B, N, K, L), summing to one over L, and values (B, N, K, L)."""
        features = features.unsqueeze(3)  # (B, C, L, 1)
        keys = features[:, : self.key_channels]  # (B, int(C r), L, 1), or all of C
        values = features[:, -self.value_channels :]  # (B, C - int(C r), L, 1), or all of C
        heads_classes = (self.head_num, self.num_classes)  # output channel n K + k is class k of head n
        scores = self.query(keys).squeeze(3).unflatten(1, heads_classes)  # (B, N, K, L)
        attention = scores.softmax(dim=3, dtype=self.query.weight.dtype)  # autocast of a CPU would leave it in half
        value = self.value(values).squeeze(3).unflatten(1, heads_classes)  # (B, N, K, L)
        return attention, self.dropout(value)

    def _flat(self, features: Tensor) -> Tensor:
        """(B, C, L) or (B, C, H, W) → (B, C, L), checked alike for every kernel."""
        channels = self.key_channels + self.value_channels if self.kv_split else self.key_channels
        if features.ndim not in (3, 4) or features.shape[1] != channels or 0 in features.shape[2:]:
            raise ValueError(
                f"NOAHHead needs (B, {channels}, L) or (B, {channels}, H, W) with at least one position, "
                f"got {tuple(features.shape)}"
            )
        dtypes = {features.dtype, self.value.weight.dtype}
        if len(dtypes) > 1 and not (torch.is_autocast_enabled(features.device.type) and dtypes <= _AUTOCAST_DTYPES):
            raise ValueError(
                f"NOAHHead has parameters of {self.value.weight.dtype} and got features of {features.dtype}; "
                "convert the features, or use torch.autocast, which takes float32, bfloat16 and float16"
            )
        return features.flatten(2)

    def extra_repr(self) -> str:
        return f"head_num={self.head_num}, num_classes={self.num_classes}, init={self.init}, kernel={self.kernel}"


class _Settings(NoahHeadSettings):
    """All arguments of the head."""

    in_channels: PositiveInt
    num_classes: PositiveInt

    def check_width(self) -> None:
        """Raise ConfigError for settings that do not fit the width, with settings that do."""
        width, n, r = self.in_channels, self.head_num, self.key_ratio
        key, value = _split_channels(width, r, self.kv_split)
        if key < 1:
            raise ConfigError(
                f"key_ratio={r} leaves 0 key channels of width {width}; at least {1 / width:.4g} is needed for one"
            )
        if not self.head_split or (key % n == 0 and value % n == 0):
            return
        nearest = sorted(possible_head_nums(width, r, self.kv_split), key=lambda other: abs(other - n))[:4]
        advice = f"head_num={', '.join(map(str, sorted(nearest)))} would work"
        ratios = [str(ratio) for ratio in (1 / 8, 1 / 4, 1 / 2, 3 / 4) if n in possible_head_nums(width, ratio)]
        if self.kv_split and ratios:
            advice += f", or key_ratio={', '.join(ratios)} with head_num={n}"
        raise ConfigError(
            f"head_num={n} does not divide the {key} key and {value} value channels of width {width} at "
            f"key_ratio={r}; {advice}, or head_split=false"
        )


def possible_head_nums(in_channels: int, key_ratio: float, kv_split: bool = True) -> list[int]:
    """All N that divide both the key and the value channels of this width."""
    key, value = _split_channels(in_channels, key_ratio, kv_split)
    return [n for n in range(1, min(key, value) + 1) if key % n == 0 and value % n == 0]


def _split_channels(in_channels: int, key_ratio: float, kv_split: bool) -> tuple[int, int]:
    """Number of channels the key branch and the value branch read."""
    if not kv_split:
        return in_channels, in_channels
    key = int(in_channels * key_ratio)  # truncated, as the official code does
    return key, in_channels - key
