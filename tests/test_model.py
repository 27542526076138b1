"""The join: timm's own model under head=gap, another head over its map otherwise, and mistakes in one line."""

import json
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

from noah_lightning import heads
from noah_lightning.errors import ConfigError, HeadSettingError, UnknownModelError, UserError
from noah_lightning.heads import NOAHHead, head_names, register_head
from noah_lightning.models.classifier import Classifier, create_model

CLASSES: dict[str, str] = json.loads((Path(__file__).parent / "data" / "timm_classes.json").read_text())
TINY_SWIN = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)}


def images_for(name: str) -> Tensor:
    torch.manual_seed(2)
    return torch.randn(2, *timm.get_pretrained_cfg(name).input_size)


# --- head=gap is timm's model


def assert_same_build(ours: nn.Module, timms: nn.Module) -> None:
    assert type(ours) is type(timms)
    assert list(ours.state_dict()) == list(timms.state_dict())
    assert [p.shape for p in ours.parameters()] == [p.shape for p in timms.parameters()]
    assert [p.requires_grad for p in ours.parameters()] == [p.requires_grad for p in timms.parameters()]


@pytest.mark.slow  # the next test has fewer classes, and logits too
@pytest.mark.parametrize("name", CLASSES.values(), ids=CLASSES.keys())
def test_gap_is_timms_model_for_every_class(name: str) -> None:
    with torch.device("meta"):
        assert_same_build(create_model(name, head="gap", num_classes=10), timm.create_model(name, num_classes=10))


@pytest.mark.parametrize(
    "name", [*timm.list_models("test_*"), "resnet18", "mobilenetv3_small_050", "regnetx_002", "xcit_nano_12_p16_224"]
)
def test_gap_is_timms_model_to_the_bit(name: str) -> None:
    torch.manual_seed(0)
    ours = create_model(name, head="gap", num_classes=10).eval()
    torch.manual_seed(0)
    timms = timm.create_model(name, num_classes=10).eval()
    assert_same_build(ours, timms)
    images = images_for(name)
    with torch.no_grad():
        assert torch.equal(ours(images), timms(images))


@pytest.mark.parametrize(
    ("settings", "timms_settings"),
    [
        (
            {"model_args": {"drop_path_rate": 0.5, "global_pool": "max"}},
            {"drop_path_rate": 0.5, "global_pool": "max"},
        ),
        ({"dropout": 0.5}, {"drop_rate": 0.5}),
        ({"dropout": 0.5, "model_args": {"drop_rate": 0.25}}, {"drop_rate": 0.25}),  # timm's argument wins
    ],
)
def test_gap_passes_its_settings_on_to_timm(settings: dict, timms_settings: dict) -> None:
    images, outputs = images_for("test_resnet"), []
    for build, arguments in ((create_model, settings), (timm.create_model, timms_settings)):
        torch.manual_seed(0)
        model = build("test_resnet", num_classes=10, **arguments).train()
        torch.manual_seed(3)
        outputs.append(model(images))
    assert torch.equal(*outputs)


def test_gap_is_the_default() -> None:
    assert type(create_model("test_vit", num_classes=10)) is timm.models.VisionTransformer


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "resnet18"])
def test_gap_fits_the_image_size_and_keeps_the_class_token(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name, "gap", 10, image_size=64)
        assert model(torch.empty(2, 3, 64, 64)).shape == (2, 10)
    if name != "resnet18":  # which takes images of any size
        assert model.pos_embed.shape == (1, 17, 192)


def test_gaps_dropout_is_before_the_classifier_and_only_while_training() -> None:
    torch.manual_seed(0)
    model = create_model("resnet18", head="gap", num_classes=10, dropout=0.5).eval()
    plain = timm.create_model("resnet18", num_classes=10).eval()
    plain.load_state_dict(model.state_dict())
    features, seen = torch.rand(4, 512, 2, 2), []
    model.fc.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        assert torch.equal(model.forward_head(features), plain.forward_head(features))
        model.train().forward_head(features)
    whole, dropped = seen
    assert 0.4 < (dropped == 0).float().mean() < 0.6
    torch.testing.assert_close(dropped, torch.where(dropped == 0, 0.0, 2 * whole))


@pytest.mark.parametrize("dropout", [-0.1, 1, 1.5, float("nan"), True, "0.5", None])
def test_an_impossible_dropout_before_the_classifier_is_refused(dropout: object) -> None:
    says = ["head.dropout=", " must be a number of at least 0 and below 1"]
    assert_one_line({"name": "test_resnet", "head": "gap", "dropout": dropout}, ConfigError, says)


# --- NOAH over a map


def test_noah_reads_the_map_as_the_equations_say() -> None:
    """logit[k] = sum over n and l of softmax_l(q[n, k, l]) v[n, k, l], keys first, from timm's own features."""
    torch.manual_seed(0)
    model = create_model("test_resnet", "noah", 5, head_num=2, key_ratio=0.25).eval()
    source = timm.create_model("test_resnet", num_classes=0, global_pool="").eval()
    source.load_state_dict(model.backbone.model.state_dict())
    images = images_for("test_resnet")
    with torch.no_grad():
        features = source(images).flatten(2)  # (B, 96, L)
        expected = torch.zeros(2, 5)
        query, value = (conv.weight[:, :, 0, 0] for conv in (model.head.query, model.head.value))  # biases are 0
        for n in range(2):
            classes = slice(5 * n, 5 * (n + 1))
            keys, values = features[:, 12 * n : 12 * (n + 1)], features[:, 24 + 36 * n : 24 + 36 * (n + 1)]
            attention = torch.einsum("kc,bcl->bkl", query[classes], keys).softmax(2)
            expected += (attention * torch.einsum("kc,bcl->bkl", value[classes], values)).sum(2)
        torch.testing.assert_close(model(images), expected)


def test_settings_reach_head_and_backbone() -> None:
    settings = {"head_num": 8, "key_ratio": 0.25, "dropout": 0.3, "init": "small"}
    model = create_model("test_resnet", "noah", 7, model_args={"drop_path_rate": 0.5}, **settings)
    head = model.head
    assert isinstance(head, NOAHHead)
    assert (head.num_classes, head.head_num, head.key_channels, head.value_channels) == (7, 8, 24, 72)
    assert (head.dropout.p, head.init) == (0.3, "small")
    assert max(getattr(module, "drop_prob", 0) or 0 for module in model.backbone.modules()) == 0.5


def test_the_same_seed_gives_the_same_classifier() -> None:
    """Looking for the way to the map draws no random numbers, so a backbone starts as timm's does."""
    states = []
    for _ in range(2):
        torch.manual_seed(0)
        states.append(create_model("test_convnext", "noah", 10).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    torch.manual_seed(0)
    timms = timm.create_model("test_convnext", num_classes=0).state_dict()
    assert all(torch.equal(states[0][f"backbone.model.{key}"], value) for key, value in timms.items())


def test_explanation_belongs_to_the_logits() -> None:
    torch.manual_seed(0)
    model = create_model("test_vit", "noah", 10).eval()
    images = images_for("test_vit")
    explanation = model.explain(images)
    assert explanation.attention.shape == (2, 4, 10, 100)
    assert explanation.contribution.shape == (2, 10, 100)
    torch.testing.assert_close(explanation.logits, model(images))
    torch.testing.assert_close(explanation.contribution.sum(2), model(images))


# --- weight decay


@pytest.mark.parametrize(
    ("name", "class_token", "model_args", "spared"),
    [
        ("test_resnet", None, {}, set()),
        ("test_vit", True, {}, {"cls_token", "pos_embed"}),
        ("test_vit", None, {}, {"pos_embed"}),
        (
            "swin_tiny_patch4_window7_224",
            None,
            TINY_SWIN,
            {f"layers.{i}.blocks.0.attn.relative_position_bias_table" for i in range(4)},
        ),
    ],
)
def test_what_weight_decay_spares_are_parameters_of_the_classifier(name, class_token, model_args, spared) -> None:
    with torch.device("meta"):
        model = create_model(name, "noah", 10, class_token=class_token, model_args=model_args)
    found = model.no_weight_decay() & dict(model.named_parameters()).keys()
    assert found == {f"backbone.model.{key}" for key in spared}


# --- a user's own head


class MeanHead(nn.Module):
    def __init__(self, in_channels: int, num_classes: int, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.linear = nn.Linear(in_channels, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        return self.scale * self.linear(features.mean(2))


@pytest.fixture
def mine(monkeypatch: pytest.MonkeyPatch) -> str:
    """A user's head, registered for the length of one test."""
    monkeypatch.setattr(heads, "_HEADS", heads._HEADS.copy())
    assert register_head("mine")(MeanHead) is MeanHead
    return "mine"


def test_a_registered_head_is_built_over_the_map(mine: str) -> None:
    assert {"mine", "noah", "avg"} <= set(head_names())
    torch.manual_seed(0)
    model = create_model("test_resnet", head=mine, num_classes=10, scale=3.0).eval()
    assert isinstance(model, Classifier)
    assert isinstance(model.head, MeanHead)
    timms = timm.create_model("test_resnet", num_classes=10).eval()
    theirs = {**model.backbone.model.state_dict(), **model.head.linear.state_dict(prefix="fc.")}
    timms.load_state_dict(theirs)
    images = images_for("test_resnet")
    with torch.no_grad():
        torch.testing.assert_close(model(images), 3 * timms(images))


def test_a_test_leaves_no_head_behind() -> None:
    assert "mine" not in head_names()


@pytest.mark.parametrize("name", ["mine", "noah"])
def test_a_head_name_is_given_once(name: str, mine: str) -> None:
    with pytest.raises(ValueError, match=f"a head named '{name}' exists already"):
        register_head(name)(nn.Identity)


class ExplainingHead(MeanHead):
    def explain(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return self(features), features


def test_a_head_explains_itself_if_it_has_a_method_for_it() -> None:
    model = create_model("test_resnet", "noah", 10).eval()
    images, backbone = images_for("test_resnet"), model.backbone
    explaining = Classifier(backbone, ExplainingHead(backbone.out_channels, 10))
    with torch.no_grad():
        logits, features = explaining.explain(images)
        assert torch.equal(logits, explaining(images))
        assert torch.equal(features, backbone(images))
        with pytest.raises(TypeError, match="Flatten does not explain its logits"):
            Classifier(backbone, nn.Flatten()).explain(images)


# --- mistakes


@pytest.mark.parametrize(
    ("arguments", "kind", "says"),
    [
        ({"name": "resnet81"}, UnknownModelError, ["no model 'resnet81'", "did you mean", "resnet18"]),
        ({"name": "resnet81.a1_in1k"}, UnknownModelError, ["no model 'resnet81.a1_in1k'", "resnet18"]),
        ({"name": "resnet18.a1_in2k"}, UnknownModelError, ["no 'resnet18.a1_in2k'", "resnet18.a1_in1k"]),
        ({"name": 18}, UnknownModelError, ["no model 18"]),
        ({"name": "elsewhere:resnet18"}, ConfigError, ["elsewhere:resnet18", "hf-hub"]),
        (
            {"name": "test_resnet", "model_args": {"drop_pth_rate": 0.1}},
            ConfigError,
            ["test_resnet cannot be built with ['drop_pth_rate']"],
        ),
        (
            {"name": "test_vit", "model_args": {"embed_dim": 65}},
            ConfigError,
            ["test_vit cannot be built with ['embed_dim']", "divisible"],
        ),
    ],
)
@pytest.mark.parametrize("head", ["gap", "noah"])
def test_mistakes_about_the_model(head: str, arguments: dict, kind: type[UserError], says: list[str]) -> None:
    assert_one_line({"head": head, "num_classes": 10, **arguments}, kind, says)


@pytest.mark.parametrize(
    ("arguments", "kind", "says"),
    [
        ({"head": "gap", "head_num": 4}, ConfigError, ["head=gap", "no setting head_num, only dropout"]),
        ({"head": "gap", "class_token": False}, ConfigError, ["head=gap", "class_token unset"]),
        ({"head": "gap", "class_token": True}, ConfigError, ["head=gap", "class_token unset"]),
        ({"head": "nohah"}, HeadSettingError, ["no head is called 'nohah'", "did you mean noah"]),
        ({"head": "gep"}, HeadSettingError, ["no head is called 'gep'", "did you mean", "gap"]),
        ({"head": "noah", "head_nun": 4}, HeadSettingError, ["no setting 'head_nun'", "did you mean head_num"]),
        (
            {"head": "noah", "head_num": 5},
            HeadSettingError,
            ["head_num=5", "48 key and 48 value channels", "width 96", "head_num=2, 3, 4, 6 would work"],
        ),
    ],
)
def test_mistakes_about_the_head(arguments: dict, kind: type[UserError], says: list[str]) -> None:
    assert_one_line({"name": "test_resnet", "num_classes": 10, **arguments}, kind, says)


def assert_one_line(arguments: dict, kind: type[UserError], says: list[str]) -> None:
    with pytest.raises(UserError) as error:
        create_model(**arguments)
    assert type(error.value) is kind
    assert "\n" not in str(error.value)
    for part in says:
        assert part in str(error.value)


@pytest.mark.parametrize("head", ["gap", "noah"])
@pytest.mark.parametrize("argument", [{"num_classes": 3}, {"in_chans": 1}, {"checkpoint_path": "x.pt"}])
def test_what_is_asked_for_elsewhere_is_no_argument_for_timm(head: str, argument: dict) -> None:
    with pytest.raises(ConfigError, match=f"cannot set {next(iter(argument))}"):
        create_model("test_resnet", head, 10, model_args=argument)
