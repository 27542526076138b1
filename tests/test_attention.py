"""``noah attention``: contributions and attention of any trained model over images."""

import re
import shutil
from base64 import b64decode
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn

from conftest import TINY, Answer, FinishedRun, call_noah
from noah_lightning.analysis.attention_pictures import ClassMaps, draw_explanation
from noah_lightning.data import create_data
from noah_lightning.errors import ConfigError
from noah_lightning.heads.base import Explanation
from noah_lightning.models.classifier import Classifier, create_model, load_model
from noah_lightning.models.explain import explain
from noah_lightning.run_dir import RunDir
from noah_lightning.tools.attention import _rows
from noah_lightning.tools.images_to_explain import Images, NamedImage
from noah_lightning.tools.trained import ClassNames, open_trained

Noah = Callable[..., Answer]


@pytest.fixture(scope="module")
def insects_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on image files, with ``head=gap``; its data set is in the folder next to it."""
    folder = tmp_path_factory.mktemp("insects")
    for split in ("train", "val"):
        for name, color in (("ant", (200, 30, 30)), ("bee", (30, 30, 200))):
            (folder / "data" / split / name).mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (48, 40), color).save(folder / "data" / split / name / f"{i}.jpg")
    small = ["recipe.epochs=1", "recipe.batch_size=4", "data.image_size=32", "data.num_workers=0", "model=timm"]
    where = [f"data.root={folder / 'data'}", f"hydra.run.dir={folder / 'run'}"]
    model = ["model.name=test_resnet", "head=gap", "recipe.schedule.warmup_epochs=0"]
    answer = call_noah("train", "data=imagefolder", *small, *model, *where)
    assert answer.status == 0, answer.err
    return folder / "run"


def rows_of(answer: Answer) -> list[list[str]]:
    return [re.split(r"\s{2,}", line.strip()) for line in answer.out.splitlines()]


def test_run_on_embedded_data(noah: Noah, finished_run: FinishedRun, tmp_path: Path) -> None:
    """Predictions, true and named classes, the contrast of two: as pictures, as tables, and in a page."""
    words = ["val:0-1,7", "--class", "8", "--class", "2", "--contrast", "8", "2", "--output", "seen"]
    answer = noah("attention", str(finished_run.path), *words)
    assert (answer.status, answer.err) == (0, "")
    assert sorted(path.name for path in (tmp_path / "seen").iterdir()) == [
        *("0_val-0.png", "1_val-1.png", "2_val-7.png"),
        "index.html",
    ]
    run, found = RunDir(finished_run.path), rows_of(answer)
    recorded = run.predictions()
    for number in (0, 1, 7):
        label, guess = int(recorded.labels[number]), int(recorded.guesses[number])
        [row] = [cells for cells in found if cells[0] == f"val:{number}" and cells[2].endswith("%")]
        assert (row[1], row[2].split()[0]) == (str(label), str(guess))
        lines = {cells[1]: cells[2:] for cells in found if cells[0] == f"val:{number}" and cells is not row}
        shown = {int(name.rpartition(": ")[2]) for name in lines if ": " in name}
        assert shown == {label, guess, 8, 2}
        assert all(logit == total for logit, total in lines.values())
        of = {name.rpartition(": ")[2]: float(logit.replace("−", "-")) for name, (logit, _) in lines.items()}
        assert of["8 over 2"] == pytest.approx(of["8"] - of["2"], abs=2e-4)
    page = (tmp_path / "seen" / "index.html").read_text()
    sources = re.findall(r'<img src="data:image/png;base64,([^"]+)"', page)
    names = ("0_val-0.png", "1_val-1.png", "2_val-7.png")
    assert [b64decode(source) for source in sources] == [(tmp_path / "seen" / name).read_bytes() for name in names]
    assert not re.search(r'(src|href)="(?!data:)', page)  # opens offline
    assert "head=noah" in page
    assert "8 over 2" in page
    assert answer.out.endswith("gallery  seen/index.html\n")


def test_contributions_are_checked_and_contrast(finished_run: FinishedRun) -> None:
    """The contribution of each class sums to the logit of the model as it is evaluated, and a contrast to theirs."""
    model = load_model(finished_run.path, RunDir(finished_run.path).config())
    torch.manual_seed(0)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        why = explain(model, images)
        assert torch.equal(why.logits, model(images))
    torch.testing.assert_close(why.contribution.sum(2), why.logits, rtol=1e-5, atol=1e-5)
    names = ClassNames.of(None, 10)
    one = Explanation(*(each[:1] for each in why))
    *_, contrast = _rows(NamedImage("x", images[0], [3]), one, names, [4], [7, 1], [], one.logits[0].softmax(0))
    assert contrast.title == "7 over 1"
    torch.testing.assert_close(contrast.contribution, why.contribution[0, 7] - why.contribution[0, 1])
    assert contrast.logit == pytest.approx(float(why.logits[0, 7] - why.logits[0, 1]), abs=1e-5)
    assert float(contrast.contribution.sum()) == pytest.approx(contrast.logit, abs=1e-5)
    assert not contrast.attention


def test_rows_name_each_class_once() -> None:
    """What a class is drawn for stands in its title; named blocks are counted from 1."""
    logits = torch.tensor([[0.0, 5.0, 1.0]])
    attention = torch.full((1, 9, 3, 4), 0.25)
    why = Explanation(logits, attention, torch.zeros(1, 3, 4))
    image, names = NamedImage("x", torch.zeros(3, 2, 2), [1]), ClassNames.of(["ant", "bee", "cat"], 3)
    titles = [row.title for row in _rows(image, why, names, [1, 2], [], [], logits[0])]
    assert titles == ["predicted and true and named: bee", "named: cat"]
    [row] = _rows(image, why, names, [], [], [], logits[0])
    assert list(row.attention) == [1, 2, 3, 4, 5, 6, 7, 8]
    [row] = _rows(image, why, names, [], [], [9], logits[0])
    assert list(row.attention) == [9]
    with pytest.raises(ConfigError, match="--head 10: the head's attention has 9 blocks, numbered from 1"):
        _rows(image, why, names, [], [], [10], logits[0])


@pytest.mark.parametrize(
    "name", ["test_resnet", "test_efficientnet", "resnet18", "mixer_s32_224", "shufflenetv2_100"]
)
def test_class_activation_maps(name: str) -> None:
    """Of timm's own classifier, if it is a mean and a linear layer: the classifier at each position, divided by L."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=7).eval()
    nn.init.normal_(model.get_classifier().weight, std=0.1)
    images = torch.randn(2, 3, *model.pretrained_cfg["input_size"][1:])
    with torch.no_grad():
        why = explain(model, images)
        torch.testing.assert_close(why.contribution.sum(2), model(images), rtol=1e-5, atol=1e-5)
    positions = why.contribution.shape[2]
    assert positions >= 4
    assert why.attention.shape == (2, 1, 7, positions)
    torch.testing.assert_close(why.attention, torch.full_like(why.attention, 1 / positions))


@pytest.mark.parametrize("name", ["test_vit", "test_vit2", "test_convnext", "mobilenetv3_small_050"])
def test_models_that_do_not_classify_a_mean_are_refused(name: str) -> None:
    """A class token, and layers between the mean and the classifier."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=7).eval()
    nn.init.normal_(model.get_classifier().weight, std=0.1)
    with torch.no_grad(), pytest.raises(ConfigError, match=r"no class activation maps; train it with .* head=noah"):
        explain(model, torch.randn(1, 3, *model.pretrained_cfg["input_size"][1:]))


def test_max_pooling_is_refused() -> None:
    model = timm.create_model("test_resnet", num_classes=7, global_pool="max").eval()
    nn.init.normal_(model.get_classifier().weight, std=0.1)
    with torch.no_grad(), pytest.raises(ConfigError, match="no class activation maps"):
        explain(model, torch.randn(1, 3, 64, 64))
    with torch.no_grad(), pytest.raises(ConfigError, match="MaxHead does not explain its logits; use a head that"):
        explain(create_model("test_resnet", head="max", num_classes=7).eval(), torch.randn(1, 3, 64, 64))


class _Liar(nn.Module):
    """A head that explains other logits than it computes."""

    def forward(self, features: Tensor) -> Tensor:
        return features[:, :4].mean(2)

    def explain(self, features: Tensor) -> Explanation:
        parts = features[:, :4] / features.shape[2] * 1.001
        return Explanation(parts.sum(2), torch.ones(1), parts)


def test_an_explanation_of_other_logits_is_an_error() -> None:
    backbone = create_model("test_resnet", head="avg", num_classes=4).eval().backbone
    with torch.no_grad(), pytest.raises(ConfigError, match=r"_Liar: contributions and logits differ by 0\.001 of"):
        explain(Classifier(backbone, _Liar()), torch.randn(1, 3, 64, 64))  # type: ignore[arg-type]


def test_run_on_image_files(noah: Noah, insects_run: Path, tmp_path: Path) -> None:
    """Files and folders of them: the true class is that of their folder, unknown for an image from elsewhere."""
    val = insects_run.parent / "data" / "val"
    Image.new("RGB", (40, 48), (10, 200, 10)).save(tmp_path / "green & <b>.png")
    words = [str(val / "bee"), str(val / "ant" / "2.jpg"), "green & <b>.png", "--class", "ant", "--output", "seen"]
    answer = noah("attention", str(insects_run), *words)
    assert (answer.status, answer.err) == (0, "")
    found = [cells for cells in rows_of(answer) if len(cells) > 1 and cells[-1].endswith("%")]
    assert [cells[:2] for cells in found[:5]] == [
        *([str(val / "bee" / f"{i}.jpg"), "bee"] for i in range(4)),
        [str(val / "ant" / "2.jpg"), "ant"],
    ]
    assert found[5][0] == "green & <b>.png"
    assert "%" in found[5][1]  # a prediction, as there is no true class
    pictures = sorted(path.name for path in (tmp_path / "seen").glob("*.png"))
    assert pictures == ["0_0.png", "1_1.png", "2_2.png", "3_3.png", "4_2.png", "5_green----b-.png"]
    assert "green &amp; &lt;b&gt;.png" in (tmp_path / "seen" / "index.html").read_text()


def test_image_files_are_prepared_as_for_validation(insects_run: Path) -> None:
    """A file is the same pixels and the same true class as in the validation set of its run."""
    trained, val = open_trained(str(insects_run)), insects_run.parent / "data" / "val"
    by_number = list(Images(trained, ["val:0-7"]))
    by_file = list(Images(trained, [str(val)]))
    assert [image.true for image in by_file] == [image.true for image in by_number] == [[0]] * 4 + [[1]] * 4
    for file, numbered in zip(by_file, by_number, strict=True):
        assert torch.equal(file.pixels, numbered.pixels)


def test_timm_model_with_weights_from_a_file(noah: Noah, tmp_path: Path) -> None:
    """Prepared as timm says; the file has the number of classes."""
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=3).eval()
    nn.init.normal_(model.get_classifier().weight, std=0.1)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    noise = np.random.default_rng(0).integers(0, 256, (200, 240, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    trained = open_trained("test_resnet", weights=tmp_path / "weights.pth")
    config = timm.data.resolve_model_data_config(model)
    expected = timm.data.create_transform(**config, is_training=False)(Image.fromarray(noise))
    assert trained.read is not None
    ours = trained.normalize(trained.read(tmp_path / "noise.png")[None])[0]
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(trained.model(ours[None]), model(ours[None]))
    answer = noah("attention", "test_resnet", "noise.png", "--weights", "weights.pth", "--class", "2")
    assert answer.status == 0, answer.err
    [gallery] = tmp_path.glob("runs/*/*_attention/index.html")
    assert f"gallery  {gallery.relative_to(tmp_path)}" in answer.out
    assert any(cells[1] == "named: 2" for cells in rows_of(answer) if len(cells) == 4) or "and named: 2" in answer.out


def test_names_of_classes() -> None:
    """By label, by name and by number; wnids are named in English."""
    names = ClassNames.of(["ant", "bee", "7"], 3)
    assert [names.find(text) for text in ("bee", "0", "7")] == [1, 0, 2]
    with pytest.raises(
        ConfigError, match=r"no class is called 'be'; did you mean bee\?, or write a number from 0 to 2"
    ):
        names.find("be")
    assert ClassNames.of(None, 12).names[11] == "11"
    imagenet = ClassNames.of(timm.data.ImageNetInfo().label_names(), 1000)
    assert imagenet.names[1] == "goldfish"
    assert imagenet.find("goldfish") == imagenet.find("n01443537") == imagenet.find("1") == 1
    with pytest.raises(ConfigError, match="'crane' is the name of the classes 134 and 517; write the number of one"):
        imagenet.find("crane")


def mistakes() -> list[tuple[list[str], str]]:
    return [
        (["RUN", "val:0", "--class", "cat"], "no class is called 'cat'"),
        (["RUN", "val:0", "--contrast", "1", "10"], "no class is called '10'"),
        (["RUN", "val:50"], "val:50: the validation set has 50 images, numbered from 0"),
        (["RUN", "val:9-3"], "ranges rise"),
        (["RUN", "val:0", "--head", "5"], "--head 5: the head's attention has 4 blocks"),
        (["RUN", "photo.jpg"], "images of data=digits are not files such as photo.jpg: name validation images"),
        (["RUN", "val:0", "--output", "taken"], "taken already exists"),
        (["RUN", "val:0", "--ema"], "has no average of the weights"),
        (["RUN", "val:0", "--weights", "x.pth"], "--weights is for a row of the paper or a timm model"),
        (["RUN", "val:0", "data.rot=/x"], "unknown setting 'data.rot'"),
        (["./nothing", "val:0"], "./nothing is not a folder"),
        (["taken", "val:0"], "taken is not a run directory"),
        (["resnt18", "val:0"], "has no model 'resnt18'; did you mean"),
        (["resnet18", "val:0"], "are not available"),
        (["RUN", "data.val_images=40"], "no images are named"),
        (["RUN", "val:0-499", "data.val_images=501", "val:500"], "501 images are more than the 500 of one gallery"),
        (["resnet18", "val:0", "--weights", "x.pth"], "no weights file at x.pth"),
        (["test_resnet", "photo.jpg", "--checkpoint", "last"], "test_resnet is not a run directory"),
    ]


@pytest.mark.parametrize(("words", "says"), mistakes(), ids=lambda value: " ".join(value)[:40])
def test_mistakes_are_one_line_and_leave_nothing(
    words: list[str], says: str, noah: Noah, finished_run: FinishedRun, tmp_path: Path, offline: None
) -> None:
    (tmp_path / "taken").mkdir()
    answer = noah("attention", *(str(finished_run.path) if word == "RUN" else word for word in words))
    assert (answer.status, answer.err.count("\n")) == (2, 1), answer.err
    assert says in answer.err
    assert [path.name for path in tmp_path.rglob("*")] == ["taken"]


def test_mistakes_with_files(noah: Noah, insects_run: Path, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "empty").mkdir()
    for word, says in (
        ("text.jpg", "text.jpg cannot be read as an image"),
        ("empty", "empty has no images"),
        ("missing.jpg", "missing.jpg does not exist"),
        ("val:8", "the validation set has 8 images"),
    ):
        answer = noah("attention", str(insects_run), word, "--output", "seen")
        assert (answer.status, answer.err.count("\n")) == (2, 1), answer.err
        assert says in answer.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "text.jpg"]


def test_untrained_class_numbers_are_a_mistake(noah: Noah, tmp_path: Path) -> None:
    """Weights without a classifier, and weights with a head of ours, cannot be explained as a timm model."""
    backbone = {k: v for k, v in timm.create_model("test_resnet").state_dict().items() if not k.startswith("fc.")}
    torch.save(backbone, tmp_path / "backbone.pth")
    torch.save(create_model("test_resnet", head="noah", num_classes=4).state_dict(), tmp_path / "noah.pth")
    for name, says in (("backbone", "has no classifier"), ("noah", "has a head of ours; name its run directory")):
        answer = noah("attention", "test_resnet", "x.jpg", "--weights", f"{name}.pth")
        assert (answer.status, answer.err.count("\n")) == (2, 1), answer.err
        assert says in answer.err


def test_picture_shows_what_is_where_it_is(tmp_path: Path) -> None:
    """The upper right of a 2x2 map speaks for the class, and the lower left against it."""
    contribution = torch.tensor([0.0, 1.0, -1.0, 0.0])
    row = ClassMaps("predicted: bee", contribution, 0.0, {1: torch.tensor([0.0, 0.0, 0.0, 1.0])}, 0.9)
    assert row.heading == "predicted: bee   90.0 %   contributions sum to the logit, 0.00"
    black = torch.zeros(3, 32, 32, dtype=torch.uint8)
    figure = draw_explanation(black, r"image $\x$", [("bee", 0.9), ("ant $_$", 0.1)], ["bee"], [row])
    figure.savefig(tmp_path / "picture.png", dpi=100)
    pixels = np.asarray(Image.open(tmp_path / "picture.png").convert("RGB")).astype(int)
    lower = pixels[pixels.shape[0] // 2 :, : int(pixels.shape[1] * 0.3)]  # the contribution, without its scale
    red = np.nonzero((lower[..., 0] > 150) & (lower[..., 2] < 100))
    blue = np.nonzero((lower[..., 2] > 150) & (lower[..., 0] < 100))
    assert len(red[0]) > 100
    assert red[0].mean() < blue[0].mean()  # above it
    assert red[1].mean() > blue[1].mean()  # right of it


def test_run_before_it_has_finished(noah: Noah, insects_run: Path, tmp_path: Path) -> None:
    """Without predictions the names are those of the data set if it is read, else numbers."""
    run = tmp_path / "unfinished"
    shutil.copytree(insects_run, run)
    (run / "results.json").unlink()
    trained = open_trained(str(run), checkpoint="last")
    assert Images(trained, ["val:0"]).names.labels == ["ant", "bee"]
    assert Images(trained, [str(insects_run.parent / "data" / "val" / "ant")]).names.labels == ["0", "1"]


def test_multi_label_run(noah: Noah, tmp_path: Path) -> None:
    """All true classes have a row, and each class has a probability of its own."""
    tiny = [pair for pair in TINY if not pair.startswith("experiment")]
    answer = noah("train", "experiment=demo_multilabel", *tiny, "recipe.epochs=1", "hydra.run.dir=run", "head=noah")
    assert answer.status == 0, answer.err
    data = create_data(**RunDir(Path("run")).config().data.arguments())
    data.setup("validate")
    assert data.val_dataset is not None
    true = data.val_dataset[1][1].nonzero().flatten().tolist()
    assert len(true) > 1
    answer = noah("attention", "run", "val:1", "--output", "seen")
    assert answer.status == 0, answer.err
    [row] = [cells for cells in rows_of(answer) if cells[-1].endswith("%")]
    assert row[1] == ", ".join(map(str, true))
    drawn = [cells[1] for cells in rows_of(answer) if len(cells) == 4 and "true" in cells[1]]
    assert [name.rpartition(": ")[2] for name in sorted(drawn, key=lambda name: name[-1])] == list(map(str, true))
