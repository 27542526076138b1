"""All heads behind the seam: feature layouts, gradients, compilation, half precision, export, explanations.

Each head's arithmetic is checked against an oracle of its own in test_heads_*.py.
"""

import inspect
from functools import cache
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from noah_lightning.config.compose import compose_config, config_dir
from noah_lightning.config.heads import SETTINGS
from noah_lightning.errors import HeadSettingError
from noah_lightning.heads import head_class, head_names, make_head
from noah_lightning.models.classifier import Classifier, create_model

NAMES = [name for name in head_names() if name in SETTINGS]
WIDTH, CLASSES = 64, 10
OVER_A_MAP = [name for name in NAMES if not getattr(head_class(name), "reads_class_token", False)]
EXPLAINED = [name for name in NAMES if hasattr(head_class(name), "explain")]
LAYOUTS = {
    "convolutional": "test_resnet",
    "channels last": "test_convnext",  # timm's NHWC models return a map as NCHW or NHWC
    "tokens": "test_vit",  # without its class token
    "tokens with prefix": "test_vit3",
}


def inputs_of(head: nn.Module, batch: int = 3, positions: int = 9) -> tuple[Tensor, ...]:
    features = torch.randn(batch, WIDTH, positions, requires_grad=True)
    return (features, torch.randn(batch, WIDTH)) if getattr(head, "reads_class_token", False) else (features,)


def made(name: str, **settings: Any) -> nn.Module:
    torch.manual_seed(0)
    return make_head(name, WIDTH, CLASSES, **settings)


@pytest.mark.parametrize("name", NAMES)
def test_its_file_has_the_settings_of_its_constructor_and_schema(name: str) -> None:
    content: Any = OmegaConf.to_container(OmegaConf.load(config_dir() / "head" / f"{name}.yaml"))
    own = list(inspect.signature(head_class(name)).parameters)[2:]  # after the width and the number of classes
    assert content["name"] == name
    assert content.keys() - {"name"} == set(own) == SETTINGS[name].model_fields.keys() - {"name"}


@pytest.mark.parametrize("name", NAMES)
def test_each_is_composed_and_says_where_it_comes_from(name: str) -> None:
    config = compose_config(["experiment=demo", f"head={name}"])
    assert config.head.name == name
    defaults = {key: field.default for key, field in SETTINGS[name].model_fields.items()}
    assert config.head.model_dump() | {"dropout": 0} == defaults | {"dropout": 0}
    head: Any = head_class(name)
    assert head.paper
    assert head.equation


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_has_a_gradient(name: str) -> None:
    head = made(name).train()
    inputs = inputs_of(head, batch=8)
    logits = head(*inputs)
    assert logits.shape == (8, CLASSES)
    logits.square().sum().backward()
    assert inputs[0].grad is not None
    missing = [key for key, parameter in head.named_parameters() if parameter.grad is None]
    assert not missing


@cache
def features_of(layout: str, class_token: bool) -> tuple[Tensor, ...]:
    """What a head reads of two images."""
    head = "cls_mean" if class_token else "avg"
    model = create_model(LAYOUTS[layout], head=head, num_classes=CLASSES, image_size=160).eval()
    assert isinstance(model, Classifier)
    with torch.no_grad():
        return model.features(torch.randn(2, 3, 160, 160))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NAMES)
def test_every_feature_layout(name: str, layout: str) -> None:
    class_token = name not in OVER_A_MAP
    if class_token and layout != "tokens":
        pytest.skip("reads the class token")
    features = features_of(layout, class_token)
    head = make_head(name, features[0].shape[1], CLASSES).train()
    logits = head(*features)
    assert logits.shape == (2, CLASSES)
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", OVER_A_MAP)
def test_a_map_is_read_as_its_positions_in_row_major_order(name: str) -> None:
    head = made(name).eval()
    features = torch.randn(2, WIDTH, 4, 4)
    torch.testing.assert_close(head(features), head(features.flatten(2)), rtol=0, atol=0)
    channels_last = features.to(memory_format=torch.channels_last)
    torch.testing.assert_close(head(channels_last), head(features), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_compiled_whole(name: str) -> None:
    torch.compiler.reset()  # heads share a forward, and torch compiles one function for 8 classes at most
    head = made(name).eval()
    inputs = inputs_of(head)

    def results() -> list[Tensor]:
        head.zero_grad()
        logits = head(*inputs)
        logits.square().sum().backward()
        return [logits, *(parameter.grad for parameter in head.parameters() if parameter.grad is not None)]

    expected = results()
    head.compile(fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(results(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_autocast_is_close_to_float32(name: str) -> None:
    head = made(name).eval()
    inputs = inputs_of(head)
    expected = head(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        found = head(*inputs)
    scale = expected.abs().max().item()
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.05 * scale)


@pytest.mark.parametrize("name", NAMES)
def test_exported_for_any_batch(name: str) -> None:
    head = made(name).eval()
    inputs = tuple(tensor.detach() for tensor in inputs_of(head))
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(head, inputs, dynamic_shapes=tuple({0: batch} for _ in inputs))
    more = tuple(torch.cat([tensor, tensor]) for tensor in inputs)
    torch.testing.assert_close(program.module()(*more), head(*more), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("name", EXPLAINED)
def test_contributions_sum_to_the_logits(name: str, batch_norm: bool) -> None:
    if batch_norm and "batch_norm" not in SETTINGS[name].model_fields:
        pytest.skip("has no BatchNorm")
    head: Any = made(name, **({"batch_norm": True} if batch_norm else {})).train()
    head(*inputs_of(head, batch=16))  # running statistics that are not 0 and 1
    head.eval()
    inputs = inputs_of(head, batch=5)
    why = head.explain(*inputs)
    batch, positions = inputs[0].shape[0], inputs[0].shape[2]
    assert why.contribution.shape == (batch, CLASSES, positions)
    assert why.attention.shape[0::2] == (batch, CLASSES)
    assert why.attention.shape[3] == positions
    torch.testing.assert_close(why.logits, head(*inputs), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(why.contribution.sum(dim=2), why.logits, rtol=1e-5, atol=1e-5)
    sums = why.attention.sum(dim=3)
    torch.testing.assert_close(sums, torch.ones_like(sums), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in EXPLAINED if name in OVER_A_MAP])
def test_models_explain_themselves(name: str) -> None:
    model = create_model("test_resnet", head=name, num_classes=CLASSES, image_size=96).eval()
    assert isinstance(model, Classifier)
    images = torch.randn(2, 3, 96, 96)
    torch.testing.assert_close(model.explain(images).contribution.sum(2), model(images), rtol=1e-5, atol=1e-5)


def test_a_class_token_that_is_missing_is_one_line() -> None:
    with pytest.raises(HeadSettingError, match="test_resnet has no class token"):
        create_model("test_resnet", head="cls_mean")


def test_settings_are_checked_for_callers_in_python() -> None:
    with pytest.raises(HeadSettingError, match=r"^head\.dropout=1\.5 must be a number of at least 0 and below 1$"):
        make_head("avg", WIDTH, CLASSES, dropout=1.5)
