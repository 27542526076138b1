"""Feature maps of timm's models: one for every class, the right values, the right positions."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from timm.models import _registry
from torch import Tensor, nn

from noah_lightning.errors import NoSpatialMapError
from noah_lightning.heads import NOAHHead
from noah_lightning.models import FeatureMapBackbone, make_backbone
from noah_lightning.models.classifier import create_model
from noah_lightning.models.feature_extractor import grid_shape

# one cheap model of every class in timm; where a class is missing, test_the_recorded_classes_are_all says its name
CLASSES: dict[str, str] = json.loads((Path(__file__).parent / "data" / "timm_classes.json").read_text())

# classes whose smallest model takes seconds even on meta; the slow test of every model has them whole
FEWER_LAYERS = {
    "sequencer2d_s": {"layers": (1, 1, 1, 1)},
    "gemma4_vit_570m": {"depth": 2},
    "gemma4_vit_167m_enc": {"depth": 2},
    "deepseek_vit_412m_align": {"depth": 2},
    "deepseek_vit_412m_enc": {"depth": 2},
}
TINY_SWIN = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)}
TINY_VIT = {"embed_dim": 32, "depth": 2, "num_heads": 2}


def images_for(name: str, device: str = "cpu") -> Tensor:
    """Two images of the size the model is made for."""
    size = timm.get_pretrained_cfg(name).input_size
    return torch.empty(2, *size, device="meta") if device == "meta" else torch.randn(2, *size)


def pair(name: str, class_token: bool | None = None, **model_args) -> tuple[FeatureMapBackbone, nn.Module]:
    """Our backbone, and timm's model without classifier and with the same weights."""
    torch.manual_seed(0)
    backbone = make_backbone(name, class_token=class_token, **model_args).eval()
    token_args = {} if class_token is None else {"class_token": class_token}
    if class_token is False:
        token_args["global_pool"] = model_args.get(
            "global_pool", ""
        )  # timm will not pool by a token that is not there
    source = timm.create_model(name, num_classes=0, **{**model_args, **token_args}).eval()
    weights = source.state_dict()
    backbone.model.load_state_dict({key: weights[key] for key in backbone.model.state_dict()})
    return backbone, source


# --- every model of timm


@pytest.mark.parametrize("name", CLASSES.values(), ids=CLASSES.keys())
def test_every_class_of_timm_gives_a_map(name: str) -> None:
    with torch.device("meta"):
        images = images_for(name, "meta")
        model = create_model(name, head="noah", head_num=1, model_args=FEWER_LAYERS.get(name))
        features = model.backbone(images)
        logits = model.head(features)
    batch, channels, positions = features.shape
    assert (batch, channels) == (2, model.backbone.out_channels)
    assert positions > 1
    assert logits.shape == (2, 1000)


@pytest.mark.slow
def test_the_recorded_classes_are_all() -> None:
    found = {}
    with torch.device("meta"):
        for name in timms_models():
            found.setdefault(class_of(timm.create_model(name, num_classes=0)), name)
        assert {key: found[key] for key in found.keys() - CLASSES.keys()} == {}
        recorded = {key: class_of(timm.create_model(name, num_classes=0)) for key, name in CLASSES.items()}
    assert recorded == {key: key for key in found}


def timms_models() -> list[str]:
    """All that timm lists but those that we have registered with it."""
    return [name for name in timm.list_models() if timm.model_entrypoint(name).__module__.startswith("timm.")]


def class_of(model: nn.Module) -> str:
    return f"{type(model).__module__.removeprefix('timm.models.')}.{type(model).__name__}"


@pytest.mark.slow
def test_every_model_of_timm_maps_to_logits_or_says_why_not(capsys: pytest.CaptureFixture[str]) -> None:
    names, without_map, started = timms_models(), [], time.monotonic()
    for name in names:
        with torch.device("meta"):
            try:
                model = create_model(name, head="noah", head_num=1)
            except NoSpatialMapError:
                without_map.append(name)
                continue
            assert model(images_for(name, "meta")).shape == (2, 1000), name
    mapped = len(names) - len(without_map)
    with capsys.disabled():
        minutes = (time.monotonic() - started) / 60
        print(f"\n{mapped} of {len(names)} models of timm {timm.__version__} map to logits ({minutes:.0f} min)")
        print(f"without a spatial map: {', '.join(without_map) or 'none'}")
    assert mapped >= 0.99 * len(names)


# --- the values: what timm computes, position by position


@pytest.mark.parametrize(
    ("name", "class_token", "model_args"),
    [
        pytest.param("test_resnet", None, {}, id="NCHW"),
        pytest.param("test_efficientnet", None, {}, id="NCHW-after-last-convolution"),
        pytest.param("swin_tiny_patch4_window7_224", None, TINY_SWIN, id="NHWC"),
        pytest.param("test_vit_relpos", None, {"fc_norm": False}, id="tokens"),
        pytest.param("test_vit", False, {"global_pool": "avg", "fc_norm": False}, id="class-token-left-out"),
        pytest.param("test_vit", True, {"global_pool": "avg", "fc_norm": False}, id="class-token-dropped"),
        pytest.param("test_vit2", None, {"fc_norm": False}, id="register-token-dropped"),
    ],
)
def test_the_mean_over_positions_is_timms_average_pooling(name, class_token, model_args) -> None:
    backbone, source = pair(name, class_token, **model_args)
    images = images_for(name)
    with torch.no_grad():
        torch.testing.assert_close(backbone(images).mean(2), source(images), rtol=1e-5, atol=1e-6)


def tokens_after(prefix_tokens: int) -> Callable[[nn.Module, Tensor], Tensor]:
    return lambda model, images: model.forward_features(images)[:, prefix_tokens:].transpose(1, 2)


@pytest.mark.parametrize(
    ("name", "class_token", "model_args", "timms_map"),
    [
        pytest.param("test_resnet", None, {}, lambda m, x: m.forward_features(x), id="resnet"),
        pytest.param(
            "test_convnext", None, {}, lambda m, x: m.head.norm(m.forward_features(x)), id="convnext-and-its-norm"
        ),
        pytest.param(
            "mobilenetv3_small_050",
            None,
            {},
            lambda m, x: m.act2(m.norm_head(m.conv_head(m.forward_features(x)))),
            id="mobilenetv3-and-its-last-convolution",
        ),
        pytest.param(
            "swin_tiny_patch4_window7_224",
            None,
            TINY_SWIN,
            lambda m, x: m.forward_features(x).permute(0, 3, 1, 2),
            id="swin-is-NHWC",
        ),
        pytest.param(
            "test_mambaout",
            None,
            {},
            lambda m, x: m.head.pre_logits(m.head.norm(m.forward_features(x))).permute(0, 3, 1, 2),
            id="mambaout-is-NHWC-with-norm-and-mlp",
        ),
        pytest.param("test_vit", False, {}, tokens_after(0), id="vit"),
        pytest.param("test_vit", True, {}, tokens_after(1), id="vit-with-class-token"),
        pytest.param(
            "test_vit2",
            None,
            {},
            lambda m, x: m.fc_norm(m.forward_features(x))[:, 1:].transpose(1, 2),
            id="vit-with-register-token-and-fc_norm",
        ),
        pytest.param("deit_tiny_distilled_patch16_224", None, TINY_VIT, tokens_after(2), id="deit-distilled"),
        pytest.param("cait_xxs24_224", None, TINY_VIT, tokens_after(1), id="cait"),
    ],
)
def test_the_map_is_timms_own_in_row_major_order(name, class_token, model_args, timms_map) -> None:
    backbone, source = pair(name, class_token, **model_args)
    images = images_for(name)
    with torch.no_grad():
        features, expected = backbone(images), timms_map(source, images).flatten(2)
    assert features.shape == expected.shape
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-6)


def test_oblong_maps_are_row_major_too() -> None:
    backbone, source = pair("test_resnet")
    images = torch.randn(1, 3, 64, 160)
    with torch.no_grad():
        features, output = backbone(images), source.forward_features(images)
    rows, columns = output.shape[2:]
    assert rows < columns
    assert torch.equal(features.unflatten(2, (rows, columns)), output)
    assert torch.equal(features[0, :, columns], output[0, :, 1, 0])  # the second row starts after a whole first one


@pytest.mark.parametrize(
    ("positions", "aspect", "grid"),
    [
        (196, 1, (14, 14)),
        (49, 1.0, (7, 7)),
        (1, 1, (1, 1)),
        (12, 3 / 4, (3, 4)),
        (12, 4 / 3, (4, 3)),
        (192, 3 / 4, (12, 16)),
        (30, 224 / 192, (6, 5)),  # a stride of 37: the grid is not quite the image's aspect
    ],
)
def test_grid_of_positions(positions: int, aspect: float, grid: tuple[int, int]) -> None:
    assert grid_shape(positions, aspect) == grid


# --- what is in the way to the map, and what is not


def on_meta(name: str, **settings) -> FeatureMapBackbone:
    with torch.device("meta"):
        return make_backbone(name, **settings)


def positions_of(backbone: FeatureMapBackbone, side: int = 224) -> int:
    return backbone(torch.empty(2, 3, side, side, device="meta")).shape[2]


@pytest.mark.parametrize(("class_token", "embedded"), [(None, 196), (False, 196), (True, 197)])
def test_a_vit_has_a_class_token_only_on_request_and_the_map_never(class_token, embedded) -> None:
    backbone = on_meta("deit_tiny_patch16_224", class_token=class_token)
    assert backbone.model.pos_embed.shape == (1, embedded, 192)
    assert (backbone.model.cls_token is not None) == (class_token is True)
    assert positions_of(backbone) == 196


@pytest.mark.parametrize(
    ("name", "width"), [("mobilenetv3_large_100", 1280), ("mobilenetv3_small_050", 1024), ("vgg11", 512)]
)
def test_width_and_positions_of_published_models(name: str, width: int) -> None:
    backbone = on_meta(name)
    assert backbone.out_channels == width
    assert positions_of(backbone) == 49


def test_vgg_comes_without_its_fully_connected_layers() -> None:
    assert not [key for key, p in on_meta("vgg11").named_parameters() if 4096 in p.shape]


@pytest.mark.parametrize(
    ("name", "side", "positions"),
    [("deit_tiny_patch16_224", 64, 16), ("deit_tiny_patch16_224", 224, 196), ("resnet18", 64, 4)],
)
def test_image_size_is_fitted(name: str, side: int, positions: int) -> None:
    assert positions_of(on_meta(name, image_size=side), side) == positions


@pytest.mark.parametrize("size", [64, (64, 96)])
def test_timms_own_img_size_is_used(size) -> None:
    height, width = (64, 64) if size == 64 else size
    backbone = on_meta("deit_tiny_patch16_224", img_size=size)
    features = backbone(torch.empty(1, 3, height, width, device="meta"))
    assert features.shape == (1, 192, height * width // 256)


def test_image_size_leaves_a_model_of_any_size_as_it_is() -> None:
    changed, unchanged = on_meta("resnet18", image_size=64), on_meta("resnet18")
    shapes = [{key: value.shape for key, value in b.state_dict().items()} for b in (changed, unchanged)]
    assert shapes[0] == shapes[1]


def test_an_old_name_is_built_for_the_size_of_the_new_one() -> None:
    with pytest.warns(UserWarning, match="deprecated model name"):
        backbone = on_meta("swin_base_patch4_window12_384_in22k", **TINY_SWIN)
    assert positions_of(backbone, 384) == 144


# --- parameters


@pytest.mark.parametrize(
    ("name", "model_args"),
    [
        ("test_resnet", {}),
        ("test_convnext", {}),
        ("test_efficientnet", {}),
        ("test_vit", {}),
        ("test_vit", {"class_token": True}),
        ("test_vit3", {}),  # pools by attention of its own
        ("swin_tiny_patch4_window7_224", TINY_SWIN),
        ("deit_tiny_distilled_patch16_224", TINY_VIT),
        ("crossvit_9_240", {}),
    ],
)
def test_all_that_trains_gets_a_gradient(name: str, model_args: dict) -> None:
    torch.manual_seed(0)
    backbone = make_backbone(name, **model_args)
    model = nn.Sequential(backbone, NOAHHead(backbone.out_channels, 10, head_num=1))
    model(images_for(name)).square().sum().backward()
    trained = [key for key, p in model.named_parameters() if p.requires_grad]
    assert trained
    assert [key for key, p in model.named_parameters() if p.grad is not None] == trained


def test_parameters_without_influence_on_the_map_are_frozen() -> None:
    """CrossViT's last fusion and one norm serve its class tokens only."""
    torch.manual_seed(0)
    backbone = make_backbone("crossvit_9_240").eval()
    frozen = {key: p for key, p in backbone.named_parameters() if not p.requires_grad}
    assert {"model.norm.0.weight", "model.blocks.2.fusion.0.attn.wq.weight"} < frozen.keys()
    images = images_for("crossvit_9_240")
    with torch.no_grad():
        before = backbone(images)
        for parameter in frozen.values():
            parameter.normal_()
        assert torch.equal(backbone(images), before)


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_vit2", "vgg11"])
def test_nothing_is_frozen_without_need(name: str) -> None:
    with torch.no_grad():  # which says nothing of a later training
        assert all(p.requires_grad for p in on_meta(name).parameters())


# --- models that have no map


class PoolsByItself(nn.Module):
    """As much of timm's interface as ``timm.create_model`` needs."""

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.classifier = nn.Linear(8, num_classes) if num_classes else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.stem(images).mean((2, 3)))


class AVectorAtLast(PoolsByItself):
    """One with all of timm's interface, whose last stage is a single position."""

    head_hidden_size = 8

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.classifier = nn.Identity()

    def prune_intermediate_layers(self, indices: int) -> None:
        pass

    def forward_intermediates(self, images: Tensor, **options) -> list[Tensor]:
        return [self.stem(images).mean((2, 3), keepdim=True)]


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Callable[[type[nn.Module]], str]:
    """Make a model known to timm for the length of one test."""
    for registry in ("_model_entrypoints", "_model_to_module", "_module_to_models"):
        monkeypatch.setattr(_registry, registry, getattr(_registry, registry).copy())
    monkeypatch.setitem(globals(), "__all__", [])

    def add(model: type[nn.Module]) -> str:
        def entrypoint(pretrained=False, pretrained_cfg=None, pretrained_cfg_overlay=None, cache_dir=None, **args):
            return model(**args)

        entrypoint.__name__ = model.__name__.lower()
        timm.models.register_model(entrypoint)
        return entrypoint.__name__

    return add


@pytest.mark.parametrize(
    ("model", "reason"),
    [(PoolsByItself, "prune_intermediate_layers"), (AVectorAtLast, r"its last stage is \(2, 8, 1, 1\)")],
)
def test_a_model_without_a_map_says_to_use_its_own_head(model, reason: str, register) -> None:
    name = register(model)
    with pytest.raises(
        NoSpatialMapError, match=f"{name} has no spatial feature map .*{reason}.*use head=gap"
    ) as error:
        create_model(name, head="noah", num_classes=10)
    assert "\n" not in str(error.value)
    assert create_model(name, head="gap", num_classes=10)(torch.randn(2, 3, 32, 32)).shape == (2, 10)
