"""Curves and pictures of the attention to a fixed set of validation images, during training."""

import csv
import math
from collections.abc import Callable
from io import BytesIO
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

import faults
from conftest import TINY, Answer, FinishedRun, call_noah
from noah_lightning.analysis.groups import group_runs
from noah_lightning.callbacks.attention_curves import _measure, attention_diversity, attention_entropy
from noah_lightning.config.heads import SETTINGS
from noah_lightning.config.recorded import parse_recorded
from noah_lightning.data import create_data
from noah_lightning.heads import head_class
from noah_lightning.models.classifier import Classifier, create_model, load_model
from noah_lightning.run_dir import RunDir
from test_loggers import column
from test_resume import interrupted_after

Noah = Callable[..., Answer]
ENTROPY, DIVERSITY = "val/attention_entropy", "val/attention_diversity"
# What draws random numbers: one number more would change all that follow.
WORDS = [*TINY, "data.image_size=128", "head.dropout=0.5", "recipe.mixing.mixup=0.2", "recipe.ema=0.5"]
WATCHED = ["attention.curve_images=11", "attention.picture_every_n_epochs=1", "attention.picture_images=3"]
UNWATCHED = ["attention.curve_images=0", "attention.picture_every_n_epochs=0"]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a run with TensorBoard, curves and pictures in each of two epochs; tests only read it."""
    run = tmp_path_factory.mktemp("watched") / "run"
    answer = call_noah("train", *WORDS, *WATCHED, "head=noah", "logger=tensorboard", f"hydra.run.dir={run}")
    assert answer.status == 0, answer.err
    return run


# --- the two metrics


def entropy_by_definition(attention: np.ndarray) -> float:
    """Mean over images, blocks and classes, in float64."""
    length = attention.shape[3]
    rows = attention.reshape(-1, length)
    return -sum(a * math.log(a) for row in rows for a in row if a > 0) / math.log(length) / len(rows)


def diversity_by_definition(attention: np.ndarray) -> float:
    """Mean over images, classes and pairs of blocks, in float64."""
    distances = []
    for image in attention:  # (N, K, L)
        for k in range(image.shape[1]):
            for a, b in combinations(image[:, k], 2):
                distances.append(1 - a @ b / math.sqrt((a @ a) * (b @ b)))
    return sum(distances) / len(distances)


@pytest.mark.parametrize("blocks", [2, 3, 8])
def test_both_metrics_are_those_of_the_definition(blocks: int) -> None:
    scores = 3 * torch.randn(5, blocks, 4, 49, generator=torch.Generator().manual_seed(0))
    attention = scores.softmax(dim=3)
    exact = attention.double().numpy()
    assert attention_entropy(attention).shape == attention_diversity(attention).shape == (5,)
    assert attention_entropy(attention).mean() == pytest.approx(entropy_by_definition(exact), abs=1e-6)
    assert attention_diversity(attention).mean() == pytest.approx(diversity_by_definition(exact), abs=1e-6)


def test_the_metrics_reach_zero_and_one() -> None:
    uniform, single = torch.full((1, 4, 2, 9), 1 / 9), torch.eye(9)[None, :4, None].expand(1, 4, 2, 9)
    assert attention_entropy(uniform).item() == pytest.approx(1)
    assert attention_entropy(single).item() == 0
    assert attention_diversity(uniform).item() == pytest.approx(0, abs=1e-6)
    assert attention_diversity(single).item() == 1


def tiny(head: str, **settings: object) -> Classifier:
    model = create_model("test_resnet", head=head, num_classes=7, **settings)
    assert isinstance(model, Classifier)
    return model.eval()


def test_attention_that_all_classes_share_is_measured_once_with_the_same_result() -> None:
    images, model = torch.randn(3, 3, 96, 96), tiny("ep", queries=2)
    with torch.no_grad():
        measured, attention = _measure(model, images), model.explain(images).attention
    assert attention.shape == (3, 2, 7, 9)
    assert attention.stride(2) == 0
    expected = attention_entropy(attention.contiguous()), attention_diversity(attention.contiguous())
    for values, those in zip((measured[ENTROPY], measured[DIVERSITY]), expected, strict=True):
        torch.testing.assert_close(values, those)


@pytest.mark.parametrize(
    "head", [name for name in SETTINGS if name != "gap" and hasattr(head_class(name), "explain")]
)
def test_every_head_that_explains_itself_is_measured(head: str) -> None:
    with torch.no_grad():
        measured = _measure(tiny(head), torch.randn(2, 3, 96, 96))
    assert ENTROPY in measured
    for values in measured.values():
        assert values.shape == (2,)
        assert ((values > -1e-6) & (values < 1 + 1e-6)).all()


@torch.no_grad()
def test_what_is_undefined_is_left_out() -> None:
    one_block, four = tiny("noah", head_num=1), tiny("noah", head_num=4)
    assert _measure(one_block, torch.randn(2, 3, 64, 64)).keys() == {ENTROPY}
    assert _measure(four, torch.randn(2, 3, 32, 32)).keys() == {DIVERSITY}  # of one position


@torch.no_grad()
def test_a_compiled_model_and_half_precision_are_measured() -> None:
    images, model = torch.randn(2, 3, 64, 64), tiny("noah")
    expected = _measure(model, images)
    model.compile(backend="eager")
    model(images)
    for name, values in _measure(model, images).items():
        torch.testing.assert_close(values, expected[name])
    with torch.autocast("cpu", torch.bfloat16):
        for name, values in _measure(model, images).items():
            assert values.dtype == torch.float32
            torch.testing.assert_close(values, expected[name], atol=0.02, rtol=0)


# --- during training


def test_the_curves_are_of_evenly_spaced_validation_images_and_all_classes(watched: Path) -> None:
    config = RunDir(watched).config()
    model, data = load_model(watched, config, "last"), create_data(**config.data.arguments())
    data.setup("validate")
    assert data.val_dataset is not None
    images = torch.stack([data.val_dataset[i * 50 // 11][0] for i in range(11)])
    assert isinstance(model, Classifier)
    with torch.no_grad():
        attention = model.explain(data.on_device.normalize(images)).attention.double().numpy()
    assert attention.shape[:3] == (11, 4, 10)
    assert len(column(watched, ENTROPY)) == len(column(watched, DIVERSITY)) == 2
    assert column(watched, ENTROPY)[-1] == pytest.approx(entropy_by_definition(attention), abs=1e-5)
    assert column(watched, DIVERSITY)[-1] == pytest.approx(diversity_by_definition(attention), abs=1e-5)


def test_the_curves_are_in_the_rows_of_the_accuracy(watched: Path) -> None:
    with (watched / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [bool(row[ENTROPY]) for row in rows] == [bool(row["val/top1"]) for row in rows]


def test_tensorboard_gets_curves_and_pictures(watched: Path) -> None:
    events = EventAccumulator(str(watched / "tensorboard")).Reload()
    for name in (ENTROPY, DIVERSITY):
        assert [event.value for event in events.Scalars(name)] == pytest.approx(column(watched, name))
    pictures = events.Images("val/attention")
    assert [picture.step for picture in pictures] == [event.step for event in events.Scalars("val/top1")] == [2, 5]
    drawn = [np.asarray(Image.open(BytesIO(picture.encoded_image_string))) for picture in pictures]
    assert drawn[0].shape == (460, 600, 3), "three images"
    assert drawn[0].std() > 10, "something is drawn"
    assert not np.array_equal(*drawn), "the attention of another epoch"


def test_training_is_the_same_with_and_without_and_resumed(
    noah: Noah, monkeypatch: pytest.MonkeyPatch, watched: Path
) -> None:
    def weights(run: Path) -> dict[str, Tensor]:
        state: dict[str, Tensor] = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        return state

    answer = noah("train", *WORDS, *UNWATCHED, "head=noah", "hydra.run.dir=without")
    assert answer.status == 0, answer.err
    assert not column(Path("without"), ENTROPY)
    without, with_both = weights(Path("without")), weights(watched)
    assert all(torch.equal(without[key], with_both[key]) for key in without)

    command = ["train", *WORDS, *WATCHED, "head=noah", "logger=tensorboard", "hydra.run.dir=run"]
    assert interrupted_after(noah, monkeypatch, 4, command=command).status == 130
    assert len(column(Path("run"), ENTROPY)) == 1
    answer = noah("resume", "run")
    assert answer.status == 0, answer.err
    assert faults.differences(watched, Path("run")) == []


def test_a_head_that_takes_derivatives_to_explain_has_curves(noah: Noah) -> None:
    words = ["head=ep", "head.queries=2", "trainer.max_epochs=1", "trainer.precision=bf16-mixed"]
    answer = noah("train", *TINY, *words, "hydra.run.dir=run")
    assert answer.status == 0, answer.err
    assert 0 < column(Path("run"), ENTROPY)[0] <= 1
    assert 0 <= column(Path("run"), DIVERSITY)[0] <= 1


@pytest.mark.parametrize("head", ["gap", "max"])
def test_a_head_without_attention_has_neither(noah: Noah, head: str) -> None:
    words = [f"head={head}", "logger=tensorboard", "trainer.max_epochs=1", "attention.picture_every_n_epochs=1"]
    answer = noah("train", *TINY, *words, "hydra.run.dir=run")
    assert answer.status == 0, answer.err
    assert "attention" not in Path("run/metrics.csv").read_text()
    assert EventAccumulator("run/tensorboard").Reload().Tags()["images"] == []


def test_multilabel_images_have_curves_and_no_pictures(noah: Noah) -> None:
    words = [
        "experiment=demo_multilabel",
        "data.image_size=64",
        "head=noah",
        "logger=tensorboard",
        "trainer.max_epochs=1",
    ]
    answer = noah("train", *[word for word in TINY if word != "experiment=demo"], *words, "hydra.run.dir=run")
    assert answer.status == 0, answer.err
    assert len(column(Path("run"), ENTROPY)) == 1
    assert EventAccumulator("run/tensorboard").Reload().Tags()["images"] == []


def test_the_csv_alone_has_curves_and_no_pictures(finished_run: FinishedRun) -> None:
    assert len(column(finished_run.path, ENTROPY)) == len(column(finished_run.path, DIVERSITY)) == 2
    assert not list(finished_run.path.rglob("*.png"))


# --- settings


def recorded(folder: Path, path: Path, **changes: object) -> Path:
    """The configuration of ``folder`` with some of its groups changed (None: missing), in ``path``."""
    content = yaml.safe_load((folder / "config.yaml").read_text()) | changes
    path.mkdir()
    kept = {group: settings for group, settings in content.items() if settings is not None}
    (path / "config.yaml").write_text(yaml.safe_dump(kept))
    return path / "config.yaml"


def test_earlier_recorded_runs_keep_their_pictures_and_have_no_curves(watched: Path, tmp_path: Path) -> None:
    wandb = {"name": "wandb", "project": "noah", "picture_every_n_epochs": 3}
    config = parse_recorded(recorded(watched, tmp_path / "wandb", attention=None, logger=wandb))
    assert (config.attention.curve_images, config.attention.picture_every_n_epochs) == (0, 3)
    assert config.logger.model_dump()["project"] == "noah"
    config = parse_recorded(recorded(watched, tmp_path / "csv", attention=None, logger={"name": "csv"}))
    assert (config.attention.curve_images, config.attention.picture_every_n_epochs) == (0, 0)


def test_runs_that_differ_in_what_is_watched_are_of_one_group(watched: Path, tmp_path: Path) -> None:
    recorded(watched, tmp_path / "other", attention={"curve_images": 7}, seed=1)
    (tmp_path / "other/results.json").write_bytes((watched / "results.json").read_bytes())
    [group] = group_runs([RunDir(watched), RunDir(tmp_path / "other")])
    assert sorted(group.runs) == [0, 1]


def test_what_is_watched_may_change_when_a_run_resumes(noah: Noah, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["train", *TINY, *UNWATCHED, "head=noah", "hydra.run.dir=run"]
    assert interrupted_after(noah, monkeypatch, 3, command=command).status == 130
    answer = noah("resume", "run", "attention.curve_images=4")
    assert answer.status == 0, answer.err
    assert len(column(Path("run"), ENTROPY)) == 1
