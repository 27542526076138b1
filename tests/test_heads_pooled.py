"""Heads that pool and classify, and WILDCAT, against definitions of their own in float64.

The definitions are loops over images, positions and blocks, as the papers' equations stand, or timm's modules.
Parameters are drawn at random, since the starting values of some (zero queries and biases) would hide mistakes.
"""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.layers import LsePlus2d, SimPool1d
from torch import Tensor, nn
from torch.func import functional_call

from noah_lightning.errors import HeadSettingError
from noah_lightning.heads import make_head

BATCH, WIDTH, POSITIONS, CLASSES = 3, 8, 5, 4
Parameters = dict[str, Tensor]
Pooling = Callable[[Tensor, Parameters], Tensor]  # positions (L, C) of one image → pooled features (D)


def softmax(scores: list[Tensor]) -> list[Tensor]:
    total = sum(score.exp() for score in scores)
    return [score.exp() / total for score in scores]


def weighted(attention: list[Tensor], values: list[Tensor]) -> Tensor:
    return torch.stack([weight * value for weight, value in zip(attention, values, strict=True)]).sum(0)


def layer_norm(x: Tensor, p: Parameters, name: str) -> Tensor:
    deviation = x - x.mean()
    return deviation / (deviation.square().mean() + 1e-6).sqrt() * p[f"{name}.weight"] + p[f"{name}.bias"]


def gem(positions: Tensor, p: Parameters) -> Tensor:
    channels = []
    for channel in positions.T:
        powers = [torch.maximum(x, torch.tensor(1e-6)) ** p["power"] for x in channel]
        channels.append((sum(powers) / len(powers)) ** (1 / p["power"]))
    return torch.stack(channels)


def lse_plus(positions: Tensor, p: Parameters) -> Tensor:
    r = p["pooling.r"]
    return torch.stack([(sum((r * x).exp() for x in channel) / len(channel)).log() / r for channel in positions.T])


def timm_simpool(positions: Tensor, p: Parameters, gamma: float | None = None) -> Tensor:
    own = {"norm.weight": "layer_norm.weight", "norm.bias": "layer_norm.bias"}
    own |= {"q.weight": "query.weight", "k.weight": "key.weight"}
    module = SimPool1d(WIDTH, gamma=gamma).double()
    pooled: Tensor = functional_call(module, {theirs: p[name] for theirs, name in own.items()}, positions[None])[0]
    return pooled


def ep(positions: Tensor, p: Parameters) -> Tensor:
    each = WIDTH // len(p["queries"])
    pooled = []
    for m, query in enumerate(p["queries"]):
        attention = softmax([(query * x).sum() / math.sqrt(WIDTH) for x in positions])
        pooled.append(weighted(attention, [p["value.weight"][each * m : each * (m + 1)] @ x for x in positions]))
    return torch.cat(pooled)


def several_heads(query: Tensor, keys: list[Tensor], values: list[Tensor], heads: int) -> Tensor:
    each = WIDTH // heads
    pooled = []
    for n in range(heads):
        own = slice(each * n, each * (n + 1))
        attention = softmax([(query[own] * key[own]).sum() / math.sqrt(each) for key in keys])
        pooled.append(weighted(attention, [value[own] for value in values]))
    return torch.cat(pooled)


def aim(positions: Tensor, p: Parameters) -> Tensor:
    keys, values = ([p[f"{name}.weight"] @ x for x in positions] for name in ("key", "value"))
    return several_heads(p["query"], keys, values, heads=4)


def cae(positions: Tensor, p: Parameters) -> Tensor:
    query = p["query.weight"] @ layer_norm(p["token"], p, "query_norm") + p["query.bias"]
    keys = [p["key.weight"] @ layer_norm(x, p, "key_norm") for x in positions]
    values = [p["value.weight"] @ layer_norm(x, p, "value_norm") + p["value.bias"] for x in positions]
    return p["projection.weight"] @ several_heads(query, keys, values, heads=2) + p["projection.bias"]


def abmil(positions: Tensor, p: Parameters) -> Tensor:
    scores = []
    for x in positions:
        hidden = torch.tanh(p["hidden.weight"] @ x)
        if "gate.weight" in p:
            hidden = hidden * torch.sigmoid(p["gate.weight"] @ x)
        scores.append((p["score.weight"][0] * hidden).sum())
    return weighted(softmax(scores), list(positions))


def wildcat(positions: Tensor, p: Parameters, maps: int, count: int, alpha: float) -> Tensor:
    logits = []
    for k in range(CLASSES):
        scores = []
        for x in positions:
            own = [(p["fc.weight"][maps * k + m] * x).sum() + p["fc.bias"][maps * k + m] for m in range(maps)]
            scores.append(sum(own) / maps)
        scores.sort(key=lambda score: score.item())
        logits.append(sum(scores[-count:]) / count + alpha * sum(scores[:count]) / count)
    return torch.stack(logits)


def classified(pooling: Pooling) -> Pooling:
    return lambda positions, p: p["fc.weight"] @ pooling(positions, p) + p["fc.bias"]


DEFINITIONS: dict[str, tuple[str, dict[str, Any], Pooling]] = {
    "gem": ("gem", {}, classified(gem)),
    "lse_plus": ("lse_plus", {}, classified(lse_plus)),
    "simpool": ("simpool", {}, classified(timm_simpool)),
    "simpool, gamma": ("simpool", {"gamma": 1.5}, classified(lambda x, p: timm_simpool(x, p, 1.5))),
    "ep": ("ep", {"queries": 4}, classified(ep)),
    "aim": ("aim", {"heads": 4}, classified(aim)),
    "cae": ("cae", {"heads": 2}, classified(cae)),
    "abmil": ("abmil", {"hidden": 6}, classified(abmil)),
    "abmil, not gated": ("abmil", {"hidden": 6, "gated": False}, classified(abmil)),
    "wildcat": ("wildcat", {"maps": 3, "share": 0.4}, lambda x, p: wildcat(x, p, 3, 2, 0.7)),
    "wildcat, one position": ("wildcat", {"share": 0.01, "alpha": 0.0}, lambda x, p: wildcat(x, p, 4, 1, 0.0)),
    "wildcat, all positions": ("wildcat", {"share": 1.0, "maps": 1}, lambda x, p: wildcat(x, p, 1, 5, 0.7)),
}


def random_head(name: str, **settings: Any) -> nn.Module:
    torch.manual_seed(0)
    head = make_head(name, WIDTH, CLASSES, **settings).double()
    for parameter in head.parameters():
        nn.init.uniform_(parameter, 0.5, 2.5) if parameter.ndim == 0 else nn.init.normal_(parameter)
    return head


def assert_same_function(head: nn.Module, features: Tensor, oracle: Callable[[Tensor], Tensor]) -> None:
    """The same logits, and the same gradients by the features and by each parameter."""
    features.requires_grad_()
    found, expected = head(features), oracle(features)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    weights = torch.randn_like(found)
    names, parameters = zip(*head.named_parameters(), strict=True)
    for_found = torch.autograd.grad(found, [features, *parameters], weights)
    for_expected = torch.autograd.grad(expected, [features, *parameters], weights)
    for name, one, other in zip(["features", *names], for_found, for_expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("case", DEFINITIONS)
def test_logits_and_gradients_are_those_of_the_definition(case: str) -> None:
    name, settings, oracle = DEFINITIONS[case]
    head = random_head(name, **settings).eval()
    if name == "aim":
        head.feature_norm.eps = 0.0  # with running statistics of 0 and 1 it does nothing
    parameters = dict(head.named_parameters())
    features = torch.randn(BATCH, WIDTH, POSITIONS, dtype=torch.float64)
    assert_same_function(head, features, lambda x: torch.stack([oracle(image.T, parameters) for image in x]))


def test_aim_standardizes_its_features_over_images_and_positions() -> None:
    head = random_head("aim", heads=4).train()
    parameters = dict(head.named_parameters())

    def oracle(features: Tensor) -> Tensor:
        channels = []
        for channel in features.unbind(1):
            deviation = channel - channel.mean()
            channels.append(deviation / (deviation.square().mean() + 1e-6).sqrt())
        standardized = torch.stack(channels, dim=1)
        return torch.stack([classified(aim)(image.T, parameters) for image in standardized])

    features = 3 * torch.randn(BATCH, WIDTH, POSITIONS, dtype=torch.float64) + 2
    assert_same_function(head, features, oracle)


def test_lse_plus_is_timms() -> None:
    head = random_head("lse_plus", r=5).eval()
    features = torch.randn(BATCH, WIDTH, 4, 4, dtype=torch.float64)
    pooled = functional_call(LsePlus2d(), {"r": head.get_parameter("pooling.r")}, features)
    torch.testing.assert_close(head(features), head.get_submodule("fc")(pooled))


def test_gem_of_channels_without_positive_features_has_finite_gradients() -> None:
    head = make_head("gem", WIDTH, CLASSES, power=9)
    features = torch.zeros(BATCH, WIDTH, POSITIONS, requires_grad=True)
    head(features).sum().backward()
    for tensor in (features, *head.parameters()):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()


@pytest.mark.parametrize(
    ("name", "total"),
    [
        ("gem", 513_001),
        ("lse_plus", 513_001),
        ("ep", 791_528),
        ("aim", 1_037_800),
        ("simpool", 1_038_312),
        ("cae", 1_566_696),
        ("abmil", 513_000 + 2 * 512 * 128 + 128),
        ("wildcat", 4 * 513_000),
    ],
)
def test_number_of_parameters(name: str, total: int) -> None:
    head = make_head(name, 512, 1000)
    assert sum(parameter.numel() for parameter in head.parameters()) == total


def test_starting_values_are_the_authors() -> None:
    torch.manual_seed(0)
    cae, aim, ep, abmil = (make_head(name, 512, 10) for name in ("cae", "aim", "ep", "abmil"))
    assert not cae.get_parameter("token").any()
    for layer in ("query", "value", "projection"):
        assert not cae.get_parameter(f"{layer}.bias").any()
        assert cae.get_parameter(f"{layer}.weight").std().item() == pytest.approx(0.02, rel=0.02)
    assert aim.get_parameter("query").std().item() == pytest.approx(0.02, rel=0.1)
    assert ep.get_parameter("queries").std().item() == pytest.approx(0.02, rel=0.05)
    bound = math.sqrt(6 / (512 + 128))
    assert abmil.get_parameter("hidden.weight").abs().max().item() == pytest.approx(bound, rel=0.01)


@pytest.mark.parametrize(
    ("name", "setting", "value"), [("ep", "queries", 10), ("aim", "heads", 10), ("cae", "heads", 10)]
)
def test_parts_that_do_not_divide_the_width_are_one_line(name: str, setting: str, value: int) -> None:
    with pytest.raises(HeadSettingError, match=rf"^{setting}=10 does not divide the width 96; use .*8, 12"):
        make_head(name, 96, CLASSES, **{setting: value})


@pytest.mark.parametrize("gamma", [1.25, 2.0])
def test_contributions_of_simpool_with_a_power_sum_to_the_logits(gamma: float) -> None:
    head: Any = random_head("simpool", gamma=gamma).eval()
    features = torch.randn(BATCH, WIDTH, POSITIONS, dtype=torch.float64)
    why = head.explain(features)
    torch.testing.assert_close(why.logits, head(features))
    torch.testing.assert_close(why.contribution.sum(dim=2), why.logits)


def test_wildcat_attends_to_the_highest_and_to_the_lowest_scores() -> None:
    head: Any = random_head("wildcat", share=0.4, maps=1, alpha=0.5).eval()
    features = torch.randn(BATCH, WIDTH, POSITIONS, dtype=torch.float64)
    why = head.explain(features)
    scores = head.fc(features.transpose(1, 2)).transpose(1, 2)
    rank = scores.argsort(dim=2).argsort(dim=2)
    highest, lowest = (rank >= POSITIONS - 2) / 2, (rank < 2) / 2
    torch.testing.assert_close(why.attention, torch.stack([highest, lowest], dim=1).double())
    torch.testing.assert_close(why.contribution, (highest + 0.5 * lowest) * scores)


def test_dropout_of_wildcat_is_on_its_features() -> None:
    head = random_head("wildcat", dropout=0.5)
    features = torch.randn(BATCH, WIDTH, POSITIONS, dtype=torch.float64)
    assert torch.equal(head.eval()(features), head(features))
    torch.manual_seed(1)
    found = head.train()(features)
    torch.manual_seed(1)
    assert torch.equal(found, head.eval()(nn.functional.dropout(features, 0.5)))
