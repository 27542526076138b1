"""Weights from local files that fit."""

import warnings
from pathlib import Path

import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed
from timm.models import save_for_hf

from noah_lightning.models import make_backbone
from noah_lightning.models.classifier import create_model
from noah_lightning.models.weights import read_weights
from weight_files import HEADS, assert_same_weights, images_for, trained, write

TINY_BEIT = {"embed_dim": 32, "depth": 2, "num_heads": 2}


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


def test_a_path_may_start_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write({"a": torch.ones(2)}, tmp_path / "weights.pt")
    assert torch.equal(read_weights("~/weights.pt").state["a"], torch.ones(2))
