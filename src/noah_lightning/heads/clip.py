"""CLIP's attention pooling: the mean of the positions attends to them and to itself, then a linear layer."""

from math import isqrt

import torch
from timm.layers import AttentionPool2d, resample_abs_pos_embed
from torch import Tensor

from noah_lightning.errors import HeadSettingError
from noah_lightning.heads import register_head
from noah_lightning.heads.base import AttentiveHead, dot_product_attention, split_heads, split_width


@register_head("clip")
class CLIPHead(AttentiveHead):
    """The mean of a square feature map is the query; keys and values are the mean and the positions.

    All have learned position embeddings, resampled to the map. The linear layer is CLIP's output projection.
    Parameters and initialization are those of timm's ``AttentionPool2d``, which computes the other L queries too.

    Args:
        in_channels: C, which is also the width D of the pooled features.
        num_classes: K.
        heads: N, the number of attention heads.
        grid: side of the grid of position embeddings.
        batch_norm, dropout: before the linear layer, as in :class:`PooledHead`.

    Raises:
        HeadSettingError: (when called) the feature map is not square.
    """

    paper = "arXiv 2103.00020"
    equation = "z = MHA(t_0, t), t = [mean(x), x] + p"

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        heads: int = 8,
        grid: int = 7,
        batch_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(in_channels, num_classes, batch_norm, dropout)
        split_width(in_channels, heads, "heads")
        self.pooling = AttentionPool2d(in_channels, grid, out_features=0, num_heads=heads, qkv_separate=True)

    def _attend_with_mean(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, C, L) → attention (B, N, 1 + L) and values (B, N, D/N, 1 + L), those of the mean first."""
        pool, tokens = self.pooling, features.transpose(1, 2)  # (B, L, C)
        tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1) + self._position(features.shape[2])
        query = split_heads(pool.q(tokens[:, :1]), pool.num_heads).squeeze(3)  # (B, N, D/N)
        attention = dot_product_attention(query, split_heads(pool.k(tokens), pool.num_heads))
        return attention, split_heads(pool.v(tokens), pool.num_heads)

    def _position(self, positions: int) -> Tensor:
        """Position embeddings of the mean and of the positions, (1, 1 + L, C)."""
        side = isqrt(positions)
        if side**2 != positions:
            raise HeadSettingError(f"head=clip needs a square feature map, this one has {positions} positions")
        pool = self.pooling
        embedding: Tensor = resample_abs_pos_embed(pool.pos_embed.unsqueeze(0), [side, side], list(pool.feat_size))
        return embedding

    def pool(self, features: Tensor) -> Tensor:
        attention, values = self._attend_with_mean(features)
        return (values @ attention.unsqueeze(3)).flatten(1)  # (B, D)

    def attend(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """As the base class says; the attention to the mean is attention to every position alike, which is exact."""
        attention, values = self._attend_with_mean(features)
        first = self._position(features.shape[2])[:, :1]  # (1, 1, C)
        values_in_mean = split_heads(self.pooling.v(features.transpose(1, 2) + first), self.pooling.num_heads)
        through_mean, attention = attention[..., :1] / features.shape[2], attention[..., 1:]
        total = attention + through_mean  # (B, N, L)
        weighted = attention.unsqueeze(2) * values[..., 1:] + through_mean.unsqueeze(2) * values_in_mean
        return total, weighted / total.unsqueeze(2).clamp(min=torch.finfo(total.dtype).tiny)
