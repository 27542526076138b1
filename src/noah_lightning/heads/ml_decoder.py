"""ML-Decoder: queries for groups of classes that cross-attend to the positions, then a linear layer per group.

Shapes: B images, C channels, L positions, G groups (queries), F classes of a group, W width of the decoder, N heads.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, relu, scaled_dot_product_attention

from noah_lightning.heads import register_head
from noah_lightning.heads.base import Explanation, linearized, split_heads, split_width

_HIDDEN = 2048  # width of the decoder's MLP


@register_head("ml_decoder")
class MLDecoderHead(nn.Module):
    """A transformer decoder block without self-attention, whose queries are fixed random vectors.

    In evaluation mode this is the function of timm's ``MLDecoder``, whose stack of layers recent PyTorch refuses. No
    dropout acts on the queries here: they are the same for all images, so one projection serves the batch.

    Args:
        in_channels: C.
        num_classes: K.
        groups: G, the number of queries, each for F = ceil(K / G) classes; None: 100, or K if it is smaller.
        width: W, the width of the decoder.
        heads: N, the number of attention heads.
        dropout: of the attention, of what attention and MLP add, and within the MLP.
    """

    paper = "arXiv 2111.12933"
    equation = "y_k = w_k·z_g + b_k, z = LN(u + MLP(u)), u = LN(q + MHA(q, ReLU(W x))), class k in group g"
    queries: Tensor  # (G, W)

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        groups: int | None = None,
        width: int = 768,
        heads: int = 8,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        split_width(width, heads, "heads")
        groups = min(groups or 100, num_classes)
        per_group = -(-num_classes // groups)  # F
        self.num_classes, self.heads = num_classes, heads
        self.dropout = nn.Dropout(dropout)
        self.embed = nn.Linear(in_channels, width)
        self.register_buffer("queries", torch.randn(groups, width))
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))
        self.hidden = nn.Linear(width, _HIDDEN)
        self.unhidden = nn.Linear(_HIDDEN, width)
        self.norm_queries, self.norm_attended, self.norm_last = (nn.LayerNorm(width) for _ in range(3))
        self.group_weight = nn.Parameter(torch.empty(groups, width, per_group))
        self.group_bias = nn.Parameter(torch.zeros(num_classes))
        for layer in (self.query, self.key, self.value):
            nn.init.xavier_uniform_(layer.weight)
        nn.init.xavier_normal_(self.group_weight)

    def forward(self, features: Tensor) -> Tensor:
        """Feature map (B, C, L) or (B, C, H, W) → logits (B, K)."""
        queries, *parts = self._queries_keys_values(features)
        dropout = self.dropout.p if self.training else 0.0
        query, keys, values = (part.transpose(2, 3) for part in parts)  # (B or 1, N, G or L, W/N)
        query = query.expand(keys.shape[0], -1, -1, -1)
        attended = scaled_dot_product_attention(query, keys, values, dropout_p=dropout)  # (B, N, G, W/N)
        decoded = self._decode(queries, attended.transpose(1, 2).flatten(2))  # (B, G, W)
        logits = torch.einsum("bgw,gwf->bgf", decoded, self.group_weight).flatten(1)
        return logits[:, : self.num_classes] + self.group_bias

    def explain(self, features: Tensor) -> Explanation:
        """The logits with the attention (B, N, K, L) and the contributions (B, K, L), in evaluation mode.

        A class has the attention of its group. Each group of each image is linearized for itself.
        """
        queries, query, keys, values = self._queries_keys_values(features)
        attention = (query.transpose(2, 3) @ keys * keys.shape[2] ** -0.5).softmax(dim=3)  # (B, N, G, L)
        (images, heads, groups, positions), per_group = attention.shape, self.group_weight.shape[2]
        bias = pad(self.group_bias, (0, groups * per_group - self.num_classes)).unflatten(0, (groups, per_group))
        why = linearized(
            self._classify_group,
            attention.transpose(1, 2).flatten(0, 1),  # (B G, N, L)
            values.repeat_interleave(groups, dim=0),  # (B G, N, W/N, L)
            *(tensor.repeat(images, *[1] * (tensor.ndim - 1)) for tensor in (queries, self.group_weight, bias)),
        )
        per_class = why.attention.reshape(images, groups, heads, per_group, positions).transpose(1, 2).flatten(2, 3)
        logits, contribution = why.logits.reshape(images, -1), why.contribution.reshape(images, -1, positions)
        k = self.num_classes  # the last group may have places for more
        return Explanation(logits[:, :k], per_class[:, :, :k], contribution[:, :k])

    def _queries_keys_values(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Normalized queries (G, W), their projection (1, N, W/N, G), keys and values (B, N, W/N, L)."""
        queries = self.norm_queries(2 * self.queries)  # the residual connection outlives the self-attention
        tokens = relu(self.embed(features.flatten(2).transpose(1, 2)))  # (B, L, W)
        projected = self.query(queries).unsqueeze(0), self.key(tokens), self.value(tokens)
        query, keys, values = (split_heads(part, self.heads) for part in projected)
        return queries, query, keys, values

    def _decode(self, queries: Tensor, attended: Tensor) -> Tensor:
        """Queries and what they pooled, (..., W) → their classifiers' inputs (..., W)."""
        token = self.norm_attended(queries + self.dropout(self.output(attended)))
        change = self.unhidden(self.dropout(relu(self.hidden(token))))
        decoded: Tensor = self.norm_last(token + self.dropout(change))
        return decoded

    def _classify_group(self, attended: Tensor, query: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """What queries pooled (B, W), the queries (B, W), classifiers (B, W, F), biases (B, F) → logits (B, F)."""
        return torch.einsum("bw,bwf->bf", self._decode(query, attended), weight) + bias
