"""Weights from local files: all of them or a one-line error, and nothing in a file is executed."""

import os
import pickle
import time
import warnings
from contextlib import suppress
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from timm.models import save_for_hf
from torch import Tensor, nn

from noah_lightning.errors import ConfigError, UnknownModelError, WeightsError
from noah_lightning.models import make_backbone
from noah_lightning.models.classifier import create_model
from noah_lightning.models.timm_models import build_timm_model, read_weights

HEADS = ["gap", "noah"]
TINY_BEIT = {"embed_dim": 32, "depth": 2, "num_heads": 2}


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network and an empty cache, on any machine."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


def trained(name: str, num_classes: int = 10, **model_args) -> nn.Module:
    """timm's model with weights that no constructor would draw."""
    torch.manual_seed(1)
    model = timm.create_model(name, num_classes=num_classes, **model_args).eval()
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand_like(value) * 0.2 + 0.1)  # positive, for the running variances
    return model


def images_for(name: str) -> Tensor:
    torch.manual_seed(2)
    return torch.randn(2, *timm.get_pretrained_cfg(name).input_size)


def write(state: dict[str, Tensor], path: Path, layout: str = "bare") -> str:
    if layout == "safetensors":
        save_file(state, path)
    else:
        torch.save({"bare": state, "state_dict": {"epoch": 3, "state_dict": state}}[layout], path)
    return str(path)


def assert_same_weights(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []


# --- files that fit


@pytest.mark.parametrize("layout", ["safetensors", "bare", "state_dict"])
@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_vit", "test_vit2"])
def test_gap_from_a_file_is_the_model_that_was_saved(name: str, layout: str, tmp_path: Path) -> None:
    source = trained(name)
    path = write(source.state_dict(), tmp_path / f"weights.{layout}", layout)
    model = create_model(name, head="gap", num_classes=10, weights=path).eval()
    assert_same_weights(model.state_dict(), source.state_dict())
    images = images_for(name)
    assert torch.equal(model(images), source(images))


@pytest.mark.parametrize("layout", ["safetensors", "bare", "state_dict"])
def test_noah_from_a_file_has_the_backbone_that_was_saved(layout: str, tmp_path: Path) -> None:
    source = trained("test_resnet")
    path = write(source.state_dict(), tmp_path / f"weights.{layout}", layout)
    backbone = create_model("test_resnet", head="noah", num_classes=7, weights=path).eval().backbone
    saved = {key: value for key, value in source.state_dict().items() if not key.startswith("fc.")}
    assert_same_weights(backbone.model.state_dict(), saved)
    images = images_for("test_resnet")
    assert torch.equal(backbone(images), source.forward_features(images).flatten(2))


def test_a_vit_from_a_file_keeps_the_class_token_it_was_trained_with(tmp_path: Path) -> None:
    source = trained("test_vit")
    path = write(source.state_dict(), tmp_path / "weights.pt")
    backbone = create_model("test_vit", head="noah", num_classes=7, weights=path).eval().backbone
    saved = {key: value for key, value in source.state_dict().items() if not key.startswith("head.")}
    assert_same_weights(backbone.model.state_dict(), saved)
    images = images_for("test_vit")
    features = backbone(images)
    assert features.shape == (2, 64, 100)
    assert torch.equal(features, source.forward_features(images)[:, 1:].transpose(1, 2))


def test_weights_trained_without_class_token_load_on_request(tmp_path: Path) -> None:
    source = trained("test_vit", class_token=False, global_pool="")
    path = write(source.state_dict(), tmp_path / "weights.pt")
    backbone = make_backbone("test_vit", weights=path, class_token=False).eval()
    images = images_for("test_vit")
    assert torch.equal(backbone(images), source.forward_features(images).transpose(1, 2))


@pytest.mark.parametrize(
    ("name", "model_args", "prefix_tokens"),
    [("test_vit2", {}, 1), ("beit_base_patch16_224", TINY_BEIT, 1), ("test_vit_relpos", {}, 0)],
)
def test_the_norm_that_timm_puts_after_its_average_comes_along(
    name: str, model_args: dict, prefix_tokens: int, tmp_path: Path
) -> None:
    source = trained(name, **model_args)
    path = write(source.state_dict(), tmp_path / "weights.pt")
    backbone = create_model(name, head="noah", weights=path, model_args=model_args).eval().backbone
    assert torch.equal(backbone.model.fc_norm.weight, source.fc_norm.weight)
    images = images_for(name)
    expected = source.fc_norm(source.forward_features(images))[:, prefix_tokens:].transpose(1, 2)
    torch.testing.assert_close(backbone(images), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_a_classifier_for_other_classes_is_left_out_and_is_drawn(name: str, tmp_path: Path) -> None:
    source = trained(name, num_classes=10)
    path = write(source.state_dict(), tmp_path / "weights.pt")
    classifier = source.pretrained_cfg["classifier"]
    torch.manual_seed(0)
    fresh = timm.create_model(name, num_classes=7).state_dict()
    torch.manual_seed(0)
    model = create_model(name, head="gap", num_classes=7, weights=path)
    own = {key: value for key, value in fresh.items() if key.startswith(f"{classifier}.")}
    assert own
    assert_same_weights(model.state_dict(), {**source.state_dict(), **own})


@pytest.mark.parametrize("head", HEADS)
def test_a_file_without_classifier_is_enough(head: str, tmp_path: Path) -> None:
    source = trained("test_resnet", num_classes=0)
    path = write(source.state_dict(), tmp_path / "weights.pt")
    model = create_model("test_resnet", head, 10, weights=path)
    theirs = (model if head == "gap" else model.backbone.model).state_dict()
    saved = source.state_dict()
    assert_same_weights({key: theirs[key] for key in saved}, saved)
    assert len(theirs) - len(saved) == (2 if head == "gap" else 0)


@pytest.mark.parametrize("head", HEADS)
def test_position_embeddings_are_resampled_for_another_image_size(head: str, tmp_path: Path) -> None:
    source = trained("test_vit")
    source.pos_embed.data.normal_()  # not flat, or any resampling would do
    path = write(source.state_dict(), tmp_path / "weights.pt")
    model = create_model("test_vit", head, 10, weights=path, image_size=64)
    vit = model if head == "gap" else model.backbone.model
    expected = resample_abs_pos_embed(source.pos_embed.detach(), (4, 4), num_prefix_tokens=1)
    assert torch.equal(vit.pos_embed, expected)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("head", HEADS)
def test_relative_positions_are_resampled_for_another_image_size(head: str, tmp_path: Path) -> None:
    """BEiT's tables are resampled with arithmetic of its own, which has to work where only shapes are checked."""
    source = trained("beit_base_patch16_224", **TINY_BEIT)
    path = write(source.state_dict(), tmp_path / "weights.pt")
    model = create_model("beit_base_patch16_224", head, 10, weights=path, image_size=64, model_args=TINY_BEIT)
    beit = model if head == "gap" else model.backbone.model
    overlay = {"state_dict": source.state_dict(), "num_classes": 10}
    timms = timm.create_model(
        "beit_base_patch16_224", True, pretrained_cfg_overlay=overlay, num_classes=10, img_size=64, **TINY_BEIT
    )
    key = "blocks.1.attn.relative_position_bias_table"
    assert torch.equal(beit.get_parameter(key), timms.get_parameter(key))


@pytest.mark.parametrize("head", HEADS)
def test_loading_is_silent(head: str, tmp_path: Path) -> None:
    path = write(trained("test_vit").state_dict(), tmp_path / "weights.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        create_model("test_vit", head, 10, weights=path)


@pytest.mark.parametrize("head", HEADS)
def test_a_model_from_a_local_directory(head: str, tmp_path: Path) -> None:
    """timm's ``local-dir:`` stands for ``hf-hub:`` here: neither is in timm's registry."""
    source = trained("test_vit")
    save_for_hf(source, tmp_path / "model", safe_serialization=True)
    name = f"local-dir:{tmp_path / 'model'}"
    model = create_model(name, head, 10, pretrained=True).eval()
    images = images_for("test_vit")
    if head == "gap":
        assert torch.equal(model(images), source(images))
    else:
        assert torch.equal(model.backbone(images), source.forward_features(images)[:, 1:].transpose(1, 2))


# --- files that do not


def changed(state: dict[str, Tensor], change: str) -> dict[str, Tensor]:
    state = dict(state)
    if change == "missing":
        del state["layer1.0.conv1.weight"]
    elif change == "extra":
        state["layer9.weight"] = torch.zeros(1)
    elif change == "misshapen":
        state["layer1.0.conv1.weight"] = torch.zeros(1, 2, 3, 4)
    return state


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("num_classes", [10, 7])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("missing", ["Missing", "layer1.0.conv1.weight"]),
        ("extra", ["Unexpected", "layer9.weight"]),
        ("misshapen", ["size mismatch", "layer1.0.conv1.weight", "[1, 2, 3, 4]"]),
    ],
)
def test_a_file_that_fits_but_for_one_weight_is_refused(
    change: str, says: list[str], num_classes: int, head: str, tmp_path: Path
) -> None:
    path = write(changed(trained("test_resnet").state_dict(), change), tmp_path / "weights.pt")
    with pytest.raises(WeightsError) as error:
        create_model("test_resnet", head, num_classes, weights=path)
    for part in [path, "test_resnet", *says]:
        assert part in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("head", HEADS)
def test_a_file_of_another_model_is_refused_with_the_first_names(head: str, tmp_path: Path) -> None:
    path = write(trained("test_vit").state_dict(), tmp_path / "weights.pt")
    with pytest.raises(WeightsError, match=r"does not fit test_resnet.*conv1\.0\.weight") as error:
        create_model("test_resnet", head, 10, weights=path)
    assert path in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < len(path) + 350  # dozens of names are cut off


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("key", ["patch_embed.proj.weight", "pos_embed"])
def test_a_file_that_timms_adapter_chokes_on_is_refused_in_one_line(key: str, head: str, tmp_path: Path) -> None:
    path = write({key: torch.zeros(3)}, tmp_path / "weights.pt")  # a list index, a shape: timm raises as Python does
    with pytest.raises(WeightsError, match="does not fit test_vit") as error:
        create_model("test_vit", head, 10, weights=path)
    assert path in str(error.value)
    assert "\n" not in str(error.value)


def broken_file(kind: str, folder: Path) -> Path:
    path = folder / ("weights.safetensors" if "safetensors" in kind else "weights.pt")
    state = trained("test_resnet").state_dict()
    if "text" in kind:
        path.write_text("these are\nno weights\n")
    elif "truncated" in kind:
        write(state, path, "safetensors" if "safetensors" in kind else "bare")
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "empty file":
        path.touch()
    elif kind == "directory":
        path.mkdir()
    else:
        contents = {
            "empty state dict": {},
            "empty state_dict key": {"state_dict": {}},
            "tensor": torch.zeros(3),
            "list": [1, 2],
            "other things": {"epoch": 3},
            "classifier only": {"fc.weight": state["fc.weight"], "fc.bias": state["fc.bias"]},
        }
        if kind != "missing":
            torch.save(contents[kind], path)
    return path


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("missing", "no weights file at"),
        ("directory", "no weights file at"),
        ("text", "cannot be read as model weights"),
        ("text safetensors", "cannot be read as model weights"),
        ("truncated", "cannot be read as model weights"),
        ("truncated safetensors", "cannot be read as model weights"),
        ("empty file", "cannot be read as model weights"),
        ("tensor", "cannot be read as model weights"),
        ("list", "cannot be read as model weights"),
        ("empty state dict", "holds no model weights"),  # for which timm would fetch its own
        ("empty state_dict key", "holds no model weights"),
        ("other things", "holds no model weights"),
        ("classifier only", "holds a classifier and no backbone"),
    ],
)
def test_what_is_no_file_of_weights_is_refused(kind: str, says: str, head: str, tmp_path: Path) -> None:
    path = broken_file(kind, tmp_path)
    with pytest.raises(WeightsError, match=says) as error:
        create_model("test_resnet", head, 10, weights=str(path))
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


class MakesADirectory:
    """Unpickled by a reader that trusts, it leaves a directory behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", ["torch.save", "torch.save of old", "pickle"])
def test_a_pickle_that_runs_code_is_refused_before_it_runs(form: str, tmp_path: Path) -> None:
    trace, path = tmp_path / "it-ran", tmp_path / "weights.pt"
    contents = {"state_dict": MakesADirectory(trace)}
    if form == "pickle":
        path.write_bytes(pickle.dumps(contents, protocol=2))
    else:
        torch.save(contents, path, _use_new_zipfile_serialization=form == "torch.save")
    with pytest.raises(WeightsError, match="cannot be read as model weights") as error:
        create_model("test_resnet", "noah", 10, weights=str(path))
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert not trace.exists()
    with suppress(RuntimeError):  # a bare pickle is not a file of torch, which it finds out too late
        torch.load(path, weights_only=False)
    assert trace.exists()  # so the file is a live one


def test_a_path_may_start_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write({"a": torch.ones(2)}, tmp_path / "weights.pt")
    assert torch.equal(read_weights("~/weights.pt")["a"], torch.ones(2))


# --- pretrained weights


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", ["test_resnet", "test_resnet.r160_in1k", "vit_small_patch8_224"])
def test_pretrained_without_network_is_one_line_at_once(name: str, head: str) -> None:
    started = time.monotonic()
    with pytest.raises(
        WeightsError, match=f"pretrained weights of {name} .*model.weights=.*pretrained=false"
    ) as error:
        create_model(name, head, 10, pretrained=True)
    assert "\n" not in str(error.value)
    assert time.monotonic() - started < 10


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("head", HEADS)
def test_a_hub_model_without_network_is_one_line(head: str) -> None:
    with pytest.raises(UnknownModelError, match="hf-hub:timm/test_resnet is not available") as error:
        create_model("hf-hub:timm/test_resnet", head, 10)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("head", HEADS)
def test_pretrained_and_a_file_exclude_each_other(head: str, tmp_path: Path) -> None:
    path = write(trained("test_resnet").state_dict(), tmp_path / "weights.pt")
    with pytest.raises(ConfigError, match="keep one of them"):
        create_model("test_resnet", head, 10, pretrained=True, weights=path)


def test_arguments_the_model_does_not_take_are_no_fault_of_the_file(tmp_path: Path) -> None:
    path = write(trained("test_resnet").state_dict(), tmp_path / "weights.pt")
    with pytest.raises(ConfigError, match=r"test_resnet cannot be built with \['drop_pth'\]"):
        build_timm_model("test_resnet", 10, weights=path, drop_pth=0.1)
