"""The starting weights of the paper's models, layer by layer, against the rules of the official code.

The rules are written again here. A drawn weight is compared with its rule in units of its standard deviation: over n
numbers, the mean is off by about 1/√n, and the mean square by √((kurtosis - 1)/n); SIGMAS times that is a mistake.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

from noah_lightning.errors import ConfigError
from noah_lightning.models.classifier import Classifier, build_model, create_model
from noah_lightning.models.rows import HEADS, create_row, row_config
from official import MODELS, ONE_OF_EACH_KIND, every_row

SIGMAS = 6
LARGE = {"resnet18", "resnet50", "resnet101", "resnet152", "deit_base", "deit_small"}
LARGE |= {"mixer_b16", "mixer_s16", "gmlp_s16"}  # one seed draws enough numbers, even for their smallest tensor


@dataclass(frozen=True)
class Exactly:
    value: float

    def mistake(self, values: Tensor) -> str:
        return "" if (values == self.value).all() else f"not all {self.value}"


@dataclass(frozen=True)
class Normal:
    std: float

    def mistake(self, values: Tensor) -> str:
        z = values / self.std
        if z.abs().max() < 2:  # a uniform distribution of this standard deviation ends at 1.73
            return "not normal"
        return wrong_moments(z, kurtosis=3)


@dataclass(frozen=True)
class TruncatedNormal:
    """Cut at ±2 for any standard deviation.

    The official code draws it with torch's recipe, whose float32 gives one number in some 20 million infinite; it
    ends up at the cut, far away from all others.
    """

    std: float

    def mistake(self, values: Tensor) -> str:
        cut = values.abs() == 2
        return "too many at the cut" if cut.sum() > 2 else Normal(self.std).mistake(values[~cut])


@dataclass(frozen=True)
class LeCunNormal:
    """A normal distribution cut at ±2 has a standard deviation of 0.8796; timm makes up for that."""

    fan_in: int

    def mistake(self, values: Tensor) -> str:
        std = 1 / math.sqrt(self.fan_in)
        return "beyond the cut" if values.abs().max() > 2 / 0.8796 * std else Normal(std).mistake(values)


@dataclass(frozen=True)
class Uniform:
    bound: float

    def mistake(self, values: Tensor) -> str:
        if values.abs().max() > self.bound * (1 + 1e-6):  # float32
            return f"beyond {self.bound:.3g}"
        return wrong_moments(values / self.bound * math.sqrt(3), kurtosis=1.8)


Rule = Exactly | Normal | TruncatedNormal | LeCunNormal | Uniform


def wrong_moments(z: Tensor, kurtosis: float) -> str:
    mean, square = z.mean().item(), z.square().mean().item()
    if abs(mean) > SIGMAS / math.sqrt(z.numel()):
        return f"mean of {mean:.3g} standard deviations"
    if abs(square - 1) > SIGMAS * math.sqrt((kurtosis - 1) / z.numel()):
        return f"standard deviation {math.sqrt(square):.4g} times what it should be"
    return ""


# --- the rules: layer, its name, weight or bias -> how it starts


def kaiming(layer: nn.Module, layer_name: str, name: str) -> Rule:
    """ResNet and MobileNet; depthwise convolutions are not divided by their groups."""
    if isinstance(layer, nn.BatchNorm2d):
        return Exactly(1 if name == "weight" else 0)
    if name == "bias":
        return Exactly(0)
    if isinstance(layer, nn.Linear):
        return Normal(0.01)
    out_channels, _, height, width = layer.weight.shape
    return Normal(math.sqrt(2 / (out_channels * height * width)))


def torchs_default(layer: nn.Module, layer_name: str, name: str) -> Rule:
    """ShuffleNetV2: uniform within 1/√(fan in), biases too."""
    if isinstance(layer, nn.BatchNorm2d | nn.LayerNorm):
        return Exactly(1 if name == "weight" else 0)
    return Uniform(1 / math.sqrt(layer.weight[0].numel()))


def transformer(layer: nn.Module, layer_name: str, name: str) -> Rule:
    """DeiT and PVT."""
    if name in ("pos_embed", "cls_token"):
        return TruncatedNormal(0.02)
    if isinstance(layer, nn.Linear):
        return TruncatedNormal(0.02) if name == "weight" else Exactly(0)
    return torchs_default(layer, layer_name, name)


def mlp(layer: nn.Module, layer_name: str, name: str) -> Rule:
    """Mixer and gMLP."""
    if isinstance(layer, nn.LayerNorm):
        return Exactly(1 if name == "weight" else 0)
    if isinstance(layer, nn.Conv2d):
        return LeCunNormal(layer.weight[0].numel()) if name == "weight" else Exactly(0)
    if layer_name == "head":
        return Exactly(0)
    if layer_name.endswith("gate.proj"):
        return Normal(1e-6) if name == "weight" else Exactly(1)
    return Uniform(math.sqrt(6 / sum(layer.weight.shape))) if name == "weight" else Normal(1e-6)


RULES: dict[str, Callable[[nn.Module, str, str], Rule]] = {
    "resnet": kaiming,
    "mobilenetv": kaiming,
    "shufflenetv": torchs_default,
    "deit": transformer,
    "pvt": transformer,
    "mixer": mlp,
    "gmlp": mlp,
}


def noah(row: str, layer: nn.Module, name: str) -> Rule:
    if name == "bias":
        return Exactly(0)
    if row.startswith(("mixer", "gmlp")):
        return Normal(1 / math.sqrt(layer.weight.shape[1]))
    return Normal(math.sqrt(2 / layer.weight.shape[0]))  # N·K output channels


def rule_of(row: str, model: nn.Module, layer_name: str, name: str) -> Rule:
    layer = model.get_submodule(layer_name)
    if isinstance(model, Classifier) and layer_name.startswith("head."):
        return noah(row, layer, name)
    return RULES[re.match("[a-z]+", row)[0]](layer, layer_name.removeprefix("backbone.model."), name)


# --- every row


config_of = cache(row_config)


def drawn(row: str, head: str, seed: int) -> nn.Module:
    """The row as ``create_row`` builds it."""
    torch.manual_seed(seed)
    return build_model(config_of(row, head))


# resnet50 has another block than resnet18
@pytest.mark.parametrize(("row", "head"), every_row(slow=set(MODELS) - {*ONE_OF_EACH_KIND, "resnet50"}))
def test_every_layer_of_a_row_starts_by_the_official_rule(row: str, head: str) -> None:
    models = [drawn(row, head, seed) for seed in range(1 if row in LARGE else 3)]
    mistakes = {}
    for key, _ in models[0].named_parameters():
        values = torch.cat([model.get_parameter(key).detach().double().flatten() for model in models])
        rule = rule_of(row, models[0], *key.rpartition(".")[::2])
        if mistake := rule.mistake(values):
            mistakes[key] = f"{mistake}, for {rule}"
    assert mistakes == {}


@pytest.mark.parametrize("row", ["resnet18", "mobilenetv2_035", "mobilenetv3_small", "shufflenetv2_100"])
def test_running_statistics_start_at_0_and_1(row: str) -> None:
    for name, buffer in drawn(row, "noah", 0).named_buffers():
        assert (buffer == (1 if name.endswith("running_var") else 0)).all(), name


def constant(tensor: Tensor) -> bool:
    return bool((tensor == tensor.flatten()[0]).all())


@pytest.mark.parametrize("row", ONE_OF_EACH_KIND)
def test_another_seed_draws_other_weights_and_the_same_seed_the_same(row: str) -> None:
    first, same, other = (dict(drawn(row, "noah", seed).named_parameters()) for seed in (3, 3, 4))
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert [key for key in first if torch.equal(first[key], other[key]) and not constant(first[key])] == []


# --- the alternative: timm's rule


@pytest.mark.parametrize("row", ["resnet18", "mobilenetv2_035", "deit_tiny", "mixer_s16_050"])
def test_init_timm_keeps_the_weights_that_timm_draws(row: str) -> None:
    torch.manual_seed(0)
    ours = create_row(row, "gap", ["model.init=timm"])
    name = {"deit_tiny": "deit_tiny_patch16_224", "mixer_s16_050": "mixer_s16_050_224"}.get(row, row)
    torch.manual_seed(0)
    theirs = timm.create_model(name, num_classes=1000)
    assert all(torch.equal(ours.state_dict()[key], value) for key, value in theirs.state_dict().items())


def test_timm_starts_resnets_last_norms_at_zero_and_its_classifier_by_torchs_default() -> None:
    torch.manual_seed(0)
    model = create_model("resnet18")
    assert all((block.bn2.weight == 0).all() for stage in (model.layer1, model.layer4) for block in stage)
    assert Uniform(1 / math.sqrt(512)).mistake(model.fc.weight.detach().double()) == ""


def test_timm_starts_deits_class_token_near_zero() -> None:
    torch.manual_seed(0)
    assert create_model("deit_tiny_patch16_224").cls_token.abs().max() < 1e-5


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_loaded_weights_stay_what_they_are(name: str, head: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    source = {key: tensor + 0.5 for key, tensor in timm.create_model(name, num_classes=10).state_dict().items()}
    torch.save(source, tmp_path / "weights.pt")
    model = create_model(name, head, 10, weights=str(tmp_path / "weights.pt"), backbone_init="official")
    loaded = model.state_dict() if head == "gap" else model.backbone.model.state_dict()
    assert len(loaded) > 10
    assert all(torch.equal(tensor, source[key].to(tensor.dtype)) for key, tensor in loaded.items())


# --- mistakes


@pytest.mark.parametrize("head", HEADS)
def test_a_model_the_paper_does_not_train_has_no_official_start(head: str) -> None:
    with pytest.raises(ConfigError) as error:
        create_model("test_convnext", head, 10, backbone_init="official")
    assert str(error.value) == (
        "model.init=official is known for the paper's models, not for ConvNeXt; use model.init=timm"
    )


@pytest.mark.parametrize(("init", "shown"), [("nonsense", "'nonsense'"), ("Official", "'Official'"), (None, "null")])
def test_an_unknown_rule_is_refused(init: object, shown: str) -> None:
    with pytest.raises(ConfigError) as error:
        create_model("test_resnet", "noah", 10, backbone_init=init)
    assert str(error.value) == f"model.init={shown} must be one of timm, official"
