"""Parameter groups against timm's rule written out here, and what arrives in torch's optimizer."""

from typing import Any

import pytest
import timm
import torch
from torch import nn

from noah_lightning.config.schema import OptimizerSettings
from noah_lightning.errors import ConfigError
from noah_lightning.models.classifier import create_model
from noah_lightning.task import check_options, make_optimizer, parameter_groups, scaled_to


def small_model(name: str) -> nn.Module:
    if name == "vit gap":
        return timm.create_model("test_vit", num_classes=6)
    if name == "vit noah":
        return create_model("test_vit", head="noah", num_classes=6, class_token=True, head_num=2, key_ratio=0.5)
    return create_model("test_resnet", head="noah", num_classes=6, head_num=2, key_ratio=0.5)


MODELS = ["vit gap", "vit noah", "batch-norm cnn"]


def decay_by_name(model: nn.Module, groups: list[dict[str, Any]]) -> dict[str, float]:
    """The decay of every parameter that is in a group; a parameter in two groups fails."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    grouped = [(names[parameter], group["weight_decay"]) for group in groups for parameter in group["params"]]
    assert len(dict(grouped)) == len(grouped)
    return dict(grouped)


@pytest.mark.parametrize("model_name", MODELS)
def test_all_is_one_group_of_every_parameter(model_name: str) -> None:
    model = small_model(model_name)
    (group,) = parameter_groups(model, 0.05, "all")
    assert decay_by_name(model, [group]) == dict.fromkeys(dict(model.named_parameters()), 0.05)


@pytest.mark.parametrize("model_name", MODELS)
def test_matrices_is_timms_rule(model_name: str) -> None:
    model = small_model(model_name)
    spared = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    expected = {
        name: 0.0 if parameter.ndim <= 1 or name.endswith(".bias") or name in spared else 0.05
        for name, parameter in model.named_parameters()
    }
    assert set(expected.values()) == {0.0, 0.05}
    assert decay_by_name(model, parameter_groups(model, 0.05, "matrices")) == expected


@pytest.mark.parametrize(("model_name", "prefix"), [("vit gap", ""), ("vit noah", "backbone.model.")])
def test_matrices_spares_position_embedding_and_class_token_but_no_other_table(model_name: str, prefix: str) -> None:
    model = small_model(model_name)
    decays = decay_by_name(model, parameter_groups(model, 0.05, "matrices"))
    spared = {name for name, parameter in model.named_parameters() if parameter.ndim > 1 and decays[name] == 0}
    assert spared == {f"{prefix}pos_embed", f"{prefix}cls_token"}


def test_matrices_decays_noahs_projections_and_spares_their_biases() -> None:
    model = small_model("batch-norm cnn")
    decays = decay_by_name(model, parameter_groups(model, 0.05, "matrices"))
    of_the_head = {name: decay for name, decay in decays.items() if name.startswith("head.")}
    assert of_the_head == {
        "head.query.weight": 0.05,
        "head.query.bias": 0.0,
        "head.value.weight": 0.05,
        "head.value.bias": 0.0,
    }


@pytest.mark.parametrize("decay", ["all", "matrices"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
def test_every_trainable_parameter_is_in_one_group_and_frozen_ones_in_none(decay: str, weight_decay: float) -> None:
    model = small_model("batch-norm cnn")
    frozen = {"head.query.weight", "head.value.bias"}
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    groups = parameter_groups(model, weight_decay, decay)
    assert decay_by_name(model, groups).keys() == dict(model.named_parameters()).keys() - frozen


def test_no_group_is_empty() -> None:
    assert len(parameter_groups(nn.Linear(2, 2, bias=False), 0.05, "matrices")) == 1


@pytest.mark.parametrize("decay", ["all", "matrices"])
def test_grouping_leaves_the_model_as_it_was(decay: str) -> None:
    model = small_model("vit noah")
    before = {name: (parameter, parameter.clone()) for name, parameter in model.named_parameters()}
    first, second = (parameter_groups(model, 0.05, decay) for _ in range(2))
    assert decay_by_name(model, first) == decay_by_name(model, second)
    for name, parameter in model.named_parameters():
        original, value = before[name]
        assert parameter is original
        assert parameter.requires_grad
        assert torch.equal(parameter, value)


def test_sgd_gets_momentum_nesterov_rate_and_decay() -> None:
    settings = OptimizerSettings(
        name="sgd", lr=0.3, weight_decay=1e-4, decay="all", options={"momentum": 0.8, "nesterov": True}
    )
    optimizer = make_optimizer(nn.Linear(2, 2), settings)
    assert type(optimizer) is torch.optim.SGD
    (group,) = optimizer.param_groups
    arrived = {key: group[key] for key in ("lr", "weight_decay", "momentum", "nesterov")}
    assert arrived == {"lr": 0.3, "weight_decay": 1e-4, "momentum": 0.8, "nesterov": True}


def test_adamw_gets_betas_and_epsilon_in_every_group() -> None:
    settings = OptimizerSettings(
        name="adamw", lr=3e-3, weight_decay=0.05, decay="matrices", options={"betas": [0.8, 0.95], "eps": 1e-6}
    )
    optimizer = make_optimizer(nn.Linear(2, 2), settings)
    assert type(optimizer) is torch.optim.AdamW
    assert [(g["lr"], *g["betas"], g["eps"]) for g in optimizer.param_groups] == [(3e-3, 0.8, 0.95, 1e-6)] * 2
    assert sorted(g["weight_decay"] for g in optimizer.param_groups) == [0.0, 0.05]


def test_without_options_torchs_defaults_hold() -> None:
    (group,) = make_optimizer(nn.Linear(2, 2), OptimizerSettings(name="sgd", lr=0.1)).param_groups
    assert (group["momentum"], group["weight_decay"], group["nesterov"]) == (0, 0, False)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("adamw", {"momentum": 0.9}),  # sgd's
        ("sgd", {"betas": [0.9, 0.99]}),  # adamw's
        ("sgd", {"nesterov": True}),  # needs momentum
        ("adamw", {"betas": [0.9]}),
        ("adamw", {"betas": [0.9, 1.5]}),
        ("adamw", {"fused": True, "foreach": True}),
        ("sgd", {"lr": 3}),  # has a key of its own
        ("sgd", {"weight_decay": 3}),  # also, and the groups would silently override it
    ],
)
def test_options_the_optimizer_does_not_take_are_known_before_there_is_a_model(name: str, options: dict) -> None:
    with pytest.raises(ConfigError) as caught:
        check_options(OptimizerSettings(name=name, lr=0.1, options=options))
    assert str(caught.value).startswith(f"recipe.optimizer.options={options}: ")
    assert "\n" not in str(caught.value)


# --- the rate of a batch


@pytest.mark.parametrize(("batch", "rate"), [(64, 0.025), (256, 0.1), (1, 0.1 / 256), (1024, 0.4)])
def test_the_rate_grows_with_the_batch_and_nothing_else_changes(batch: int, rate: float) -> None:
    settings = OptimizerSettings(
        name="sgd", lr=0.1, weight_decay=1e-4, decay="all", options={"momentum": 0.9}, lr_batch=256
    )
    scaled = scaled_to(settings, batch)
    assert scaled.lr == pytest.approx(rate, rel=1e-15)
    assert scaled.model_copy(update={"lr": 0.1, "lr_batch": 256}) == settings


def test_without_a_reference_batch_the_rate_holds_for_every_batch() -> None:
    settings = OptimizerSettings(name="sgd", lr=0.1)
    assert [scaled_to(settings, batch) for batch in (1, 4096)] == [settings, settings]


def test_scaling_twice_is_scaling_once() -> None:
    """A scaled rate is meant for the batch it was scaled to."""
    scaled = scaled_to(OptimizerSettings(name="sgd", lr=0.1, lr_batch=256), 64)
    assert scaled_to(scaled, 64) == scaled
