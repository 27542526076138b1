"""Official weights under our names give the official logits; anything else is refused in one line."""

import argparse
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import InterpolationMode

import noah_lightning
from conftest import Answer
from noah_lightning.errors import ConfigError, WeightsError
from noah_lightning.models.official_checkpoints import convert_official, read_official, row_overrides
from noah_lightning.models.rows import create_row
from official import LARGE, MODELS, every_row, filled, recorded_images

Noah = Callable[..., Answer]
SMALL = ("mobilenetv2_035", "noah")  # a row of 1.7 M parameters for what holds for all


# --- the weights


@pytest.mark.parametrize(("row", "head"), every_row(slow=LARGE))
def test_converted_weights_give_the_recorded_logits(row: str, head: str) -> None:
    official = filled(row, head)
    overrides = row_overrides(row, official)
    with torch.device("meta"):  # draws no weights
        model = create_row(row, head, overrides).eval()
    model.load_state_dict(convert_official(official, row, head), assign=True)
    with torch.no_grad():
        logits = model(recorded_images())
    recorded = MODELS[row][head]
    norm = torch.tensor(recorded["logits_l2"])
    torch.testing.assert_close(logits.norm(dim=1), norm, rtol=1e-5, atol=0)
    assert ((logits[:, :8] - torch.tensor(recorded["logits"])).abs() < 1e-5 * norm[:, None]).all()
    assert logits.argmax(dim=1).tolist() == recorded["argmax"]
    assert sum(p.numel() for p in model.parameters()) == recorded["params"]


def test_the_order_of_the_file_does_not_matter() -> None:
    official = filled(*SMALL)
    forwards, backwards = (convert_official(dict(order(official.items())), *SMALL) for order in (iter, reversed))
    assert forwards.keys() == backwards.keys()
    assert all(torch.equal(forwards[name], backwards[name]) for name in forwards)


def test_the_function_is_public() -> None:
    assert noah_lightning.convert_official is convert_official
    assert noah_lightning.create_row is create_row


@pytest.mark.parametrize("head", ["gap", "noah"])
def test_narrow_deits_load_without_the_released_layer_too(head: str) -> None:
    """The published parameter counts are those without it."""
    official = filled("deit_tiny_075", head)
    for key in [key for key in official if key.startswith("pre_logits.")]:
        del official[key]
    width = 144
    for key in [key for key in official if key.startswith("head.") and key.endswith("weight")]:
        shape = list(official[key].shape)
        shape[1] = width if head == "gap" else width // 2 // 4
        official[key] = torch.ones(shape)
    with torch.device("meta"):
        model = create_row("deit_tiny_075", head)
    model.load_state_dict(convert_official(official, "deit_tiny_075", head), assign=True)
    assert sum(p.numel() for p in model.parameters()) == {"gap": 3_292_984, "noah": 3_299_696}[head]


# --- what does not fit


def mistake(state: dict[str, Tensor], row: str = SMALL[0], head: str = SMALL[1]) -> str:
    with pytest.raises(WeightsError) as caught:
        convert_official(state, row, head)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_weight_is_named() -> None:
    state = filled(*SMALL)
    del state["features.1.conv.0.0.weight"]
    assert mistake(state).endswith("noah: 1 missing (features.1.conv.0.0.weight)")


def test_a_weight_too_many_is_named() -> None:
    assert mistake(filled(*SMALL) | {"features.99.weight": torch.ones(1)}).endswith(
        "1 left over (features.99.weight)"
    )


def test_a_wrong_shape_is_named() -> None:
    message = mistake(filled(*SMALL) | {"head.query.bias": torch.ones(4000)})
    assert message.endswith("head.query.bias is (4000,), not (8000,)")


def test_the_first_of_many_are_named() -> None:
    message = mistake(filled("mobilenetv2_035", "gap"), "resnet18")
    assert re.search(r": \d+ missing \(conv1\.weight, bn1\.weight, bn1\.bias, …\)", message)


@pytest.mark.parametrize(("given", "asked"), [("gap", "noah"), ("noah", "gap")])
def test_the_other_head_is_recognized(given: str, asked: str) -> None:
    assert mistake(filled("resnet18", given), "resnet18", asked).endswith(f"they look like --head {given}")


def test_another_width_of_the_row_is_refused() -> None:
    assert " is (" in mistake(filled("mobilenetv2_050", "noah"))


@pytest.mark.parametrize(
    ("row", "head", "message"),
    [
        ("resnet19", "noah", "the paper has no row 'resnet19'; did you mean resnet1"),
        ("resnet18", "nooah", "the paper has no head 'nooah'"),
    ],
)
def test_an_unknown_row_or_head_is_named(row: str, head: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        convert_official({}, row, head)


# --- the file


class Momentum:
    """Stands for any object that a script may have saved besides the weights."""


def layouts(state: dict[str, Tensor]) -> dict[str, object]:
    parallel = {f"module.{key}": tensor for key, tensor in state.items()}
    other = {key: tensor + 1 for key, tensor in state.items()}
    script = argparse.Namespace(lr=0.1, model="deit_tiny")
    return {
        "bare": state,
        "bare, parallel": parallel,
        "cnn": {"epoch": 150, "state_dict": parallel, "acc": torch.tensor(67.4), "best_acc": 67.4, "optimizer": {}},
        "cnn, numpy": {"epoch": 150, "state_dict": parallel, "best_acc": np.float64(67.4)},
        "deit": {"model": state, "optimizer": {"state": {}}, "epoch": 299, "args": script, "model_ema": other},
        "mlp": {"epoch": 299, "arch": "gmlp", "state_dict": state, "state_dict_ema": other, "args": script},
    }


@pytest.mark.parametrize("layout", layouts({}))
def test_every_layout_of_the_release_is_read(layout: str, tmp_path: Path) -> None:
    state = {"head.query.weight": torch.arange(4.0), "head.value.weight": torch.arange(3.0)}
    path = tmp_path / "official.pth"
    torch.save(layouts(state)[layout], path)
    read = {key.removeprefix("module."): tensor for key, tensor in read_official(path).items()}
    assert read.keys() == state.keys()
    assert all(torch.equal(read[key], state[key]) for key in state)


@pytest.mark.parametrize("layout", ["deit", "mlp"])
def test_the_average_is_read_where_it_is_asked_for(layout: str, tmp_path: Path) -> None:
    path = tmp_path / "official.pth"
    torch.save(layouts({"weight": torch.zeros(3)})[layout], path)
    assert torch.equal(read_official(path, ema=True)["weight"], torch.ones(3))


def test_an_average_that_is_not_there_is_missed(tmp_path: Path) -> None:
    path = tmp_path / "official.pth"
    torch.save(layouts({"weight": torch.zeros(3)})["cnn"], path)
    with pytest.raises(WeightsError, match=r"holds no averaged weights; it has epoch, state_dict, acc, …"):
        read_official(path, ema=True)


# --- the command


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small row as its official script saved it."""
    path = tmp_path_factory.mktemp("release") / "checkpoint.pth.tar"
    torch.save(layouts(filled(*SMALL))["cnn"], path)
    return path


def convert(noah: Noah, file: Path, *more: str, row: str = SMALL[0], head: str = SMALL[1]) -> Answer:
    return noah("convert", str(file), "--model", row, "--head", head, "--output", "converted", *more)


def test_convert_writes_weights_and_what_they_are(noah: Noah, checkpoint: Path) -> None:
    answer = convert(noah, checkpoint)
    assert (answer.status, answer.err) == (0, "")
    assert "1,692,128 parameters" in answer.out
    assert sorted(path.name for path in Path("converted").iterdir()) == ["model.json", "model.safetensors"]
    weights = load_file("converted/model.safetensors")
    expected = convert_official(filled(*SMALL), *SMALL)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[key], expected[key]) for key in expected)
    facts = json.loads(Path("converted/model.json").read_text())
    assert (facts["row"], facts["head"], facts["parameters"]) == (*SMALL, 1_692_128)
    assert facts["source"] == "checkpoint.pth.tar"


def test_convert_takes_the_average_on_request_and_says_that_there_is_one(noah: Noah, tmp_path: Path) -> None:
    state = filled(*SMALL)
    torch.save(layouts(state)["mlp"], tmp_path / "mlp.pth")
    answer = convert(noah, tmp_path / "mlp.pth")
    assert answer.status == 0
    assert "--ema" in answer.out
    shutil.rmtree("converted")
    answer = convert(noah, tmp_path / "mlp.pth", "--ema")
    assert answer.status == 0, answer.err
    bias = load_file("converted/model.safetensors")["head.query.bias"]
    assert torch.equal(bias, state["head.query.bias"] + 1)
    assert json.loads(Path("converted/model.json").read_text())["ema"] is True


def refused(answer: Answer) -> str:
    """The one line of a refusal that has written nothing."""
    assert answer.status == 2
    assert answer.err.startswith("noah: ")
    assert answer.err.count("\n") == 1
    assert not Path("converted").exists()
    return answer.err


def test_convert_refuses_weights_that_do_not_fit(noah: Noah, tmp_path: Path) -> None:
    state = filled(*SMALL)
    del state["head.value.bias"]
    torch.save(state, tmp_path / "file.pth")
    assert "1 missing (head.value.bias)" in refused(convert(noah, tmp_path / "file.pth"))


def test_convert_refuses_a_truncated_file(noah: Noah, checkpoint: Path, tmp_path: Path) -> None:
    whole = checkpoint.read_bytes()
    (tmp_path / "file.pth").write_bytes(whole[: len(whole) // 2])
    assert "cannot be read as model weights" in refused(convert(noah, tmp_path / "file.pth"))


def test_convert_refuses_a_text_file(noah: Noah, tmp_path: Path) -> None:
    (tmp_path / "file.pth").write_text("weights, honestly\n" * 100)
    assert "cannot be read as model weights" in refused(convert(noah, tmp_path / "file.pth"))


def test_convert_refuses_a_file_that_is_not_there(noah: Noah, tmp_path: Path) -> None:
    assert "no weights file at" in refused(convert(noah, tmp_path / "file.pth"))


@pytest.mark.parametrize("content", [[1, 2], {}, {"epoch": 3}, {"state_dict": {}}])
def test_convert_refuses_a_file_without_weights(noah: Noah, tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "file.pth")
    assert "file.pth holds no " in refused(convert(noah, tmp_path / "file.pth"))


def test_convert_executes_nothing(noah: Noah, tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (exec, (f"open({str(tmp_path / 'executed')!r}, 'w')",))

    torch.save({"state_dict": filled(*SMALL), "extra": Hostile()}, tmp_path / "file.pth")
    assert "cannot be read as model weights" in refused(convert(noah, tmp_path / "file.pth"))
    assert not (tmp_path / "executed").exists()


def test_convert_refuses_an_unknown_row(noah: Noah, checkpoint: Path) -> None:
    assert "did you mean" in refused(convert(noah, checkpoint, row="mobilenetv2_036"))


def test_convert_overwrites_nothing(noah: Noah, checkpoint: Path) -> None:
    Path("converted").mkdir()
    Path("converted/precious.txt").write_text("mine")
    answer = convert(noah, checkpoint)
    assert answer.status == 2
    assert "converted already exists" in answer.err
    assert [path.name for path in Path("converted").iterdir()] == ["precious.txt"]


# --- what was converted evaluates


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A validation set in ImageNet's layout: a thousand classes, a photograph of noise in each of the first eight."""
    root = tmp_path_factory.mktemp("imagenet")
    noise = np.random.default_rng(0)
    for label in range(1000):
        folder = root / "val" / f"n{label:08}"
        folder.mkdir(parents=True)
        coarse = noise.integers(0, 256, (6, 5, 3), dtype=np.uint8) if label < 8 else np.zeros((1, 1, 3), np.uint8)
        Image.fromarray(coarse).resize((300, 280), Image.Resampling.BICUBIC).save(folder / "photo.jpg")
    return root


def official_loss(row: str, head: str, root: Path, resize: int, mean: list[float], std: list[float]) -> float:
    """Cross-entropy over the eight photographs by torchvision's evaluation transform and the model itself."""
    bicubic = resize != 256
    mode = InterpolationMode.BICUBIC if bicubic else InterpolationMode.BILINEAR
    transform = transforms.Compose(
        [
            transforms.Resize(resize, interpolation=mode),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
    )
    images = torch.stack([transform(Image.open(root / f"val/n{i:08}/photo.jpg")) for i in range(8)])
    with torch.device("meta"):
        model = create_row(row, head).eval()
    model.load_state_dict(convert_official(filled(row, head), row, head), assign=True)
    with torch.no_grad():
        return torch.nn.functional.cross_entropy(model(images), torch.arange(8)).item()


IMAGENET_SCALE = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


@pytest.mark.parametrize(
    ("row", "resize", "mean", "std"),
    [("mobilenetv2_035", 256, *IMAGENET_SCALE), ("mixer_s16_050", 248, [0.5] * 3, [0.5] * 3)],
)
def test_a_converted_model_evaluates_on_the_transform_of_its_row(
    row: str, resize: int, mean: list[float], std: list[float], noah: Noah, imagenet: Path, tmp_path: Path
) -> None:
    torch.save(filled(row, "noah"), tmp_path / "official.pth")
    assert convert(noah, tmp_path / "official.pth", row=row).status == 0
    data = ["data=imagenet", f"data.root={imagenet}", "data.batch_size=4", "data.num_workers=0"]
    answer = noah("evaluate", "converted", *data, "trainer.limit_val_batches=2")
    assert (answer.status, answer.err) == (0, "")
    assert "of 8)" in answer.out
    expected = official_loss(row, "noah", imagenet, resize, mean, std)
    assert float(answer.out.split("loss")[1]) == pytest.approx(expected, abs=1e-4)


def test_a_converted_model_has_no_checkpoints(noah: Noah, checkpoint: Path) -> None:
    convert(noah, checkpoint)
    answer = noah("evaluate", "converted", "--checkpoint", "last", "data.root=/nowhere")
    assert answer.status == 2
    assert "is a converted model: it has no checkpoints to choose from" in answer.err


FOREIGN = {"row": "../x", "head": "noah", "pre_logits": False, "parameters": 1, "source": "x", "ema": False}


@pytest.mark.parametrize("facts", ["", "[]", '{"row": "resnet18"}', json.dumps(FOREIGN)])
def test_foreign_facts_are_refused(noah: Noah, facts: str) -> None:
    Path("converted").mkdir()
    Path("converted/model.json").write_text(facts)
    answer = noah("evaluate", "converted", "data.root=/nowhere")
    assert answer.status == 2
    assert answer.err.count("\n") == 1


def test_damaged_weights_are_refused(noah: Noah, checkpoint: Path, imagenet: Path) -> None:
    convert(noah, checkpoint)
    path = Path("converted/model.safetensors")
    content = path.read_bytes()
    for damage in (
        lambda: path.write_bytes(content[:1000]),
        lambda: save_file({"weight": torch.ones(2)}, path),
        path.unlink,
    ):
        damage()
        answer = noah("evaluate", "converted", f"data.root={imagenet}")
        assert answer.status == 2
        assert answer.err.count("\n") == 1
        assert "model.safetensors" in answer.err
