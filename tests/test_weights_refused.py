"""Weights from local files that do not fit: a one-line error, and nothing in a file is executed."""

import os
import pickle
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from noah_lightning.errors import ConfigError, WeightsError
from noah_lightning.models.classifier import create_model
from noah_lightning.models.timm_models import build_timm_model
from weight_files import HEADS, trained, write


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
    both_sides = rf"its names begin with {key}, those of the model with (cls_token, )?pos_embed, "
    with pytest.raises(WeightsError, match=f"does not fit test_vit: .*; {both_sides}") as error:
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
        ("tensor", "holds no model weights but a Tensor"),
        ("list", "holds no model weights but a list"),
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


@pytest.mark.parametrize("head", HEADS)
def test_pretrained_and_a_file_exclude_each_other(head: str, tmp_path: Path) -> None:
    path = write(trained("test_resnet").state_dict(), tmp_path / "weights.pt")
    with pytest.raises(ConfigError, match="keep one of them"):
        create_model("test_resnet", head, 10, pretrained=True, weights=path)


def test_arguments_the_model_does_not_take_are_no_fault_of_the_file(tmp_path: Path) -> None:
    path = write(trained("test_resnet").state_dict(), tmp_path / "weights.pt")
    with pytest.raises(ConfigError, match=r"test_resnet cannot be built with \['drop_pth'\]"):
        build_timm_model("test_resnet", 10, weights=path, drop_pth=0.1)


def refused(path: Path) -> str:
    """The one line about a file, which never advises to execute what is in it."""
    with pytest.raises(WeightsError) as error:
        create_model("test_resnet", "noah", 10, weights=str(path))
    message = str(error.value)
    assert message.startswith(f"{path} ")
    assert "weights_only" not in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", ["photo.jpg", "weights.pt", "weights.safetensors"])
def test_an_image_is_called_an_image(name: str, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / name, format="JPEG")
    assert refused(tmp_path / name).endswith("cannot be read as model weights: it is a JPEG image")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickled_model_is_answered_with_how_to_save_its_weights(zipped: bool, tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "model.pt", _use_new_zipfile_serialization=zipped)
    message = refused(tmp_path / "model.pt")
    assert "it holds Python objects (torch.nn.modules.linear.Linear)" in message
    assert message.endswith("save torch.save(model.state_dict(), FILE) instead")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "'version https://git-lfs"),
        (b"<!DOCTYPE html>\n<html>", "it is text that starts with '<!DOCTYPE html>'"),
        (b"", "it is damaged, or neither safetensors nor torch.save wrote it"),
        (b"\xde\xad\xbe\xef" * 99, "it is damaged, or neither safetensors nor torch.save wrote it"),
    ],
)
def test_a_file_of_something_else_says_what_it_is(content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_bytes(content)
    assert says in refused(tmp_path / "weights.pt")


def test_a_misfit_shows_the_first_names_of_both_sides_and_the_most_similar_pair(tmp_path: Path) -> None:
    state = trained("test_resnet").state_dict()
    renamed = {key.replace("layer3.0.conv2", "layer3.0.Conv2D"): tensor for key, tensor in state.items()}
    del renamed["conv1.0.weight"]
    renamed["conv1.0.weigh"] = torch.zeros(1)  # more similar by name, but of another shape
    path = Path(write(renamed, tmp_path / "weights.pt"))
    assert refused(path).endswith(
        "does not fit test_resnet: Missing: 2 (conv1.0.weight, layer3.0.conv2.weight); "
        "Unexpected: 2 (conv1.0.weigh, layer3.0.Conv2D.weight); "
        "nearest: layer3.0.conv2.weight ← layer3.0.Conv2D.weight"
    )
