"""Heads that attend: logits and gradients against independent definitions, parameter totals, explanations.

The definitions are timm's modules where the head computes itself, and loops over the papers' equations otherwise.
"""

from collections.abc import Callable
from math import inf, sqrt
from typing import Any

import pytest
import torch
from timm.layers import AttentionPoolPrr
from timm.layers.ml_decoder import MLDecoder
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import gelu, layer_norm, linear

from noah_lightning.errors import HeadSettingError
from noah_lightning.heads import csra, make_head
from noah_lightning.heads.base import linearized

WIDTH, CLASSES = 32, 10


def made(name: str, **settings: Any) -> Any:
    """A head in float64 and evaluation mode, none of whose parameters is at a special value such as 0 or 1."""
    torch.manual_seed(0)
    head = make_head(name, WIDTH, CLASSES, **settings).double().eval()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return head


def tokens_of(features: Tensor) -> Tensor:
    return features.transpose(1, 2)


def attended(query: Tensor, keys: Tensor, values: Tensor, heads: int) -> Tensor:
    """One query (D,) over keys and values (L, D) of one image, head by head."""
    width = query.shape[0] // heads
    parts = []
    for head in range(heads):
        own = slice(head * width, (head + 1) * width)
        weights = [(query[own] @ key[own] / sqrt(width)).exp() for key in keys]
        parts.append(sum(w * value[own] for w, value in zip(weights, values, strict=True)) / sum(weights))
    return torch.cat(parts)


def norm_of(module: nn.LayerNorm, x: Tensor) -> Tensor:
    return layer_norm(x, x.shape[-1:], module.weight, module.bias, module.eps)


def mlp_of(module: Any, x: Tensor) -> Tensor:
    hidden = gelu(linear(x, module.fc1.weight, module.fc1.bias))
    return linear(hidden, module.fc2.weight, module.fc2.bias)


def timm_map(head: Any, features: Tensor) -> Tensor:
    return head.fc(head.pooling(tokens_of(features)))


def timm_clip(head: Any, features: Tensor) -> Tensor:
    side = round(features.shape[2] ** 0.5)
    return head.fc(head.pooling(features.unflatten(2, (side, side))))


def timm_prr(head: Any, features: Tensor) -> Tensor:
    return head.fc(AttentionPoolPrr(WIDTH, head.heads, pool_type="avg")(tokens_of(features)))


def loop_vjepa(head: Any, features: Tensor) -> Tensor:
    logits = []
    for image in tokens_of(features):
        query = head.query_token
        tokens = norm_of(head.norm_features, image)
        keys = tokens @ head.key.weight.T
        values = tokens @ head.value.weight.T + head.value.bias
        token = query + attended(head.query.weight @ query + head.query.bias, keys, values, head.heads)
        token = token + mlp_of(head.mlp, norm_of(head.norm_pooled, token))
        logits.append(head.fc.weight @ token + head.fc.bias)
    return torch.stack(logits)


def loop_cait(head: Any, features: Tensor) -> Tensor:
    logits = []
    for image in tokens_of(features):
        token = head.class_token[0, 0]
        for block in head.blocks:
            everything = norm_of(block.norm1, torch.stack([token, *image]))
            query, keys, values = (
                everything @ layer.weight.T + layer.bias for layer in (block.attn.q, block.attn.k, block.attn.v)
            )
            pooled = attended(query[0], keys, values, head.heads)
            token = token + block.gamma_1 * (block.attn.proj.weight @ pooled + block.attn.proj.bias)
            token = token + block.gamma_2 * mlp_of(block.mlp, norm_of(block.norm2, token))
        logits.append(head.fc.weight @ norm_of(head.last_norm, token) + head.fc.bias)
    return torch.stack(logits)


def loop_csra(head: Any, features: Tensor) -> Tensor:
    logits = torch.zeros(len(features), CLASSES, dtype=features.dtype)
    for h, temperature in enumerate(head.temperatures):
        for k in range(CLASSES):
            weight = head.scores.weight[h * CLASSES + k]
            for b, image in enumerate(tokens_of(features)):
                scores = torch.stack([weight @ x / weight.norm() for x in image])
                if temperature == inf:
                    focused = scores.max()
                else:
                    weights = (temperature * scores).exp()
                    focused = (weights * scores).sum() / weights.sum()
                logits[b, k] = logits[b, k] + scores.mean() + head.attention_weight * focused
    return logits


def timm_ml_decoder(head: Any, features: Tensor) -> Tensor:
    module, parameters = timms_decoder(head)
    return functional_call(module, parameters, (tokens_of(features),))


def timms_decoder(head: Any) -> tuple[nn.Module, dict[str, Tensor]]:
    """timm's module, with its one layer called directly as torch's stack of layers refuses it; and head's weights."""
    module: Any = MLDecoder(CLASSES, len(head.queries), head.queries.shape[1], WIDTH).double().eval()
    module.decoder = module.decoder.layers[0]
    names = {"linear1": head.hidden, "linear2": head.unhidden, "multihead_attn.out_proj": head.output}
    names |= {"norm1": head.norm_queries, "norm2": head.norm_attended, "norm3": head.norm_last}
    modules = {f"decoder.{name}": part for name, part in names.items()} | {"embed_standart": head.embed}
    parameters = {
        f"{name}.{kind}": getattr(part, kind) for name, part in modules.items() for kind in ("weight", "bias")
    }
    for kind in ("weight", "bias"):
        parts = [getattr(part, kind) for part in (head.query, head.key, head.value)]
        parameters[f"decoder.multihead_attn.in_proj_{kind}"] = torch.cat(parts)
    parameters |= {"query_embed.weight": head.queries, "duplicate_pooling": head.group_weight}
    parameters["duplicate_pooling_bias"] = head.group_bias
    assert parameters.keys() == module.state_dict().keys()
    return module, parameters


CASES: dict[str, tuple[str, dict[str, Any], Callable[[Any, Tensor], Tensor]]] = {
    "map": ("map", {}, timm_map),
    "map, 2 heads": ("map", {"heads": 2}, timm_map),
    "clip, its own grid": ("clip", {"grid": 3}, timm_clip),
    "clip, resampled": ("clip", {"heads": 4}, timm_clip),
    "prr": ("prr", {}, timm_prr),
    "prr, 1 head": ("prr", {"heads": 1}, timm_prr),
    "vjepa": ("vjepa", {}, loop_vjepa),
    "cait": ("cait", {}, loop_cait),
    "cait, 3 blocks": ("cait", {"depth": 3, "heads": 2, "layer_scale": 0.5}, loop_cait),
    **{f"csra, {n}": ("csra", {"heads": n, "weight": 0.3}, loop_csra) for n in (1, 2, 4, 6, 8)},
    "ml_decoder": ("ml_decoder", {"width": 64}, timm_ml_decoder),
    "ml_decoder, 4 groups": (
        "ml_decoder",
        {"width": 48, "groups": 4},
        timm_ml_decoder,
    ),  # the last has 1 of 3 classes
}


@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradients_are_those_of_the_definition(case: str) -> None:
    name, settings, definition = CASES[case]
    head = made(name, **settings)
    features = torch.randn(3, WIDTH, 9, dtype=torch.float64, requires_grad=True)
    inputs = [features, *head.parameters()]
    found, expected = head(features), definition(head, features)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    weights = torch.randn_like(found)  # a random direction of all logits
    gradients = torch.autograd.grad((found * weights).sum(), inputs)
    for gradient, right in zip(gradients, torch.autograd.grad((expected * weights).sum(), inputs), strict=True):
        torch.testing.assert_close(gradient, right, rtol=1e-6, atol=1e-6)


def test_cait_starts_with_the_layer_scale_of_its_setting() -> None:
    head: Any = make_head("cait", WIDTH, CLASSES, layer_scale=0.25)
    assert all((block.gamma_1 == 0.25).all() and (block.gamma_2 == 0.25).all() for block in head.blocks)


@pytest.mark.parametrize(
    ("name", "settings", "total"),
    [
        ("map", {}, 3_664_872),
        ("ml_decoder", {}, 6_678_504),  # the queries are not trained
        ("prr", {}, 513_000),
        ("csra", {"heads": 4}, 4 * 512_000),
        # q, k, v; position embeddings; the linear layer
        ("clip", {}, 3 * (512 + 1) * 512 + (49 + 1) * 512 + 513_000),
        # query; two norms; q, k, v, of which k has no bias; MLP; the linear layer
        ("vjepa", {}, 4 * 512 + 3 * (512 + 1) * 512 + 8 * 512**2 + 5 * 512 + 513_000),
        # class token, last norm; in each block two norms, q, k, v and output, MLP, two scales; the linear layer
        ("cait", {}, 3 * 512 + 2 * (4 * 512 + 4 * (512 + 1) * 512 + 8 * 512**2 + 5 * 512 + 2 * 512) + 513_000),
    ],
)
def test_totals_of_parameters(name: str, settings: dict[str, Any], total: int) -> None:
    with torch.device("meta"):
        head = make_head(name, 512, 1000, **settings)
    assert sum(parameter.numel() for parameter in head.parameters()) == total


@pytest.mark.parametrize("name", ["map", "clip", "cait", "vjepa", "prr"])
def test_heads_that_do_not_divide_the_width(name: str) -> None:
    with pytest.raises(HeadSettingError, match=r"^heads=7 does not divide the width 60; use 4, 5, 6, 10$"):
        make_head(name, 60, CLASSES, heads=7)


def test_settings_of_csra_and_ml_decoder_that_cannot_be() -> None:
    with pytest.raises(HeadSettingError, match=r"^head\.heads=3 must be one of 1, 2, 4, 6, 8$"):
        make_head("csra", WIDTH, CLASSES, heads=3)
    with pytest.raises(HeadSettingError, match=r"^heads=8 does not divide the width 100"):
        make_head("ml_decoder", WIDTH, CLASSES, width=100)


def test_clip_needs_a_square_map() -> None:
    with pytest.raises(HeadSettingError, match=r"^head=clip needs a square feature map, this one has 12 positions$"):
        make_head("clip", WIDTH, CLASSES)(torch.randn(1, WIDTH, 12))


@pytest.mark.parametrize("name", ["clip", "prr"])
def test_contributions_of_linear_heads_are_exact(name: str) -> None:
    """Only the linear layer follows the pooling, so the bias alone is divided by the mean attention."""
    head = made(name)
    features = torch.randn(2, WIDTH, 9, dtype=torch.float64)
    attention, values = head.attend(features)
    parts = (attention.unsqueeze(2) * values).flatten(1, 2)  # (B, D, L)
    torch.testing.assert_close(parts.sum(dim=2), head.pool(features), rtol=1e-9, atol=1e-9)
    expected = torch.einsum("kd,bdl->bkl", head.fc.weight, parts)
    expected = expected + head.fc.bias[:, None] * attention.mean(dim=1, keepdim=True)
    torch.testing.assert_close(head.explain(features).contribution, expected, rtol=1e-9, atol=1e-9)


def test_what_is_not_linear_is_linearized() -> None:
    attention = torch.rand(2, 3, 5).softmax(dim=2)
    values, matrix, fixed = torch.randn(2, 3, 4, 5), torch.randn(7, 12), torch.rand(2, 1)
    why = linearized(lambda pooled, scale: (scale * pooled @ matrix.T).tanh(), attention, values, fixed)
    for b in range(2):
        pooled = (values[b] * attention[b, :, None]).sum(dim=2).flatten()
        logits = (fixed[b] * pooled @ matrix.T).tanh()
        slopes = (1 - logits[:, None] ** 2) * fixed[b] * matrix  # (K, D)
        parts = slopes @ (values[b] * attention[b, :, None]).flatten(0, 1)  # (K, L)
        expected = parts + (logits - parts.sum(dim=1))[:, None] * attention[b].mean(dim=0)
        torch.testing.assert_close(why.contribution[b], expected, rtol=1e-5, atol=1e-6)


def test_attention_of_cait_is_that_of_all_blocks_without_the_class_token() -> None:
    head = made("cait", heads=2)
    features = torch.randn(2, WIDTH, 9, dtype=torch.float64)
    found = head.explain(features).attention
    assert found.shape == (2, 2 * 2, CLASSES, 9)
    token, tokens = head.class_token.expand(2, -1, -1), tokens_of(features)
    for block, of_block in zip(head.blocks, found.chunk(2, dim=1), strict=True):
        everything = block.norm1(torch.cat([token, tokens], dim=1))
        query, keys = block.attn.q(everything[:, 0]), block.attn.k(everything[:, 1:])
        scores = torch.einsum("bhd,blhd->bhl", query.unflatten(1, (2, -1)), keys.unflatten(2, (2, -1)))
        expected = (scores / sqrt(WIDTH / 2)).softmax(dim=2)  # over the positions alone
        torch.testing.assert_close(of_block, expected.unsqueeze(2).expand_as(of_block), rtol=1e-9, atol=1e-9)
        token = block(tokens, token)


def test_attention_of_ml_decoder_is_that_of_the_group_of_a_class() -> None:
    head = made("ml_decoder", width=48, groups=4)
    features = torch.randn(2, WIDTH, 9, dtype=torch.float64)
    module, parameters = timms_decoder(head)
    module.load_state_dict(parameters)
    layer: Any = module.decoder
    memory = torch.relu(head.embed(tokens_of(features))).transpose(0, 1)  # (L, B, W)
    queries = layer.norm1(2 * head.queries)[:, None].expand(-1, 2, -1)
    expected = layer.multihead_attn(queries, memory, memory, average_attn_weights=False)[1]  # (B, N, G, L)
    groups = [k // 3 for k in range(CLASSES)]  # ceil(10 / 4) classes each
    torch.testing.assert_close(head.explain(features).attention, expected[:, :, groups], rtol=1e-9, atol=1e-9)


def test_ml_decoder_gives_a_class_only_what_passes_through_its_query() -> None:
    """The contributions of one class do not change with the classifier of another group."""
    head = made("ml_decoder", width=48, groups=5)
    features = torch.randn(2, WIDTH, 9, dtype=torch.float64)
    before = head.explain(features).contribution
    with torch.no_grad():
        head.group_weight[4] += 1
    change = (head.explain(features).contribution - before).abs().amax(dim=(0, 2))
    assert (change[:8] == 0).all()
    assert (change[8:] > 0).all()


def test_an_infinite_temperature_attends_to_the_largest_scores() -> None:
    scores = torch.tensor([[1.0, 3.0, 3.0], [2.0, 0.0, -1.0]])
    assert csra._attention(inf, scores).tolist() == [[0, 0.5, 0.5], [1, 0, 0]]
    torch.testing.assert_close(csra._attention(200.0, scores), csra._attention(inf, scores))
