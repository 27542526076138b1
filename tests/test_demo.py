"""``noah demo``: both heads, a table, a picture."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import TINY, Answer
from noah_lightning.analysis.attention_pictures import draw_comparison
from noah_lightning.callbacks.attention_images import attention_of_guess
from noah_lightning.config.results import Results
from noah_lightning.demo import verdict
from noah_lightning.models.classifier import create_model
from noah_lightning.models.feature_extractor import FeatureMapBackbone
from noah_lightning.run_dir import RunDir

Noah = Callable[..., Answer]


def test_demo_trains_both_heads_and_reports_them(noah: Noah, tmp_path: Path) -> None:
    answer = noah("demo", *[pair for pair in TINY if not pair.startswith("experiment")])
    assert answer.status == 0, answer.err
    [picture] = tmp_path.glob("runs/*/*_demo/demo.png")
    assert f"picture  {picture.relative_to(tmp_path)}" in answer.out
    assert Image.open(picture).size[0] > 500
    for head in ("gap", "noah"):
        results = RunDir(picture.parent / head).results()
        row = next(line for line in answer.out.splitlines() if line.strip().startswith(f"{head} "))
        assert row.split()[:3] == [head, f"{results.parameters:,}", f"{results.top1:.2f}"]
        assert f"$ noah train experiment=demo {' '.join(TINY[1:])} head={head}" in answer.out


def results_with(correct: int) -> Results:
    counts = {"correct": correct, "correct_top5": correct, "images": 200}
    return Results(parameters=10, epochs=1, best_epoch=1, **counts, train_seconds=1.0, images_per_second=1.0)


@pytest.mark.parametrize(
    ("gap", "noah_correct", "says"),
    [
        (100, 103, "NOAH wins by 1.50 points (3 images)"),
        (103, 100, "GAP wins by 1.50 points (3 images)"),
        (100, 100, "equally often"),
    ],
)
def test_verdict_is_honest(gap: int, noah_correct: int, says: str) -> None:
    assert says in verdict({"gap": results_with(gap), "noah": results_with(noah_correct)})


def test_attention_is_that_of_the_most_probable_class() -> None:
    torch.manual_seed(0)
    model = create_model("test_resnet", head="noah", num_classes=4, head_num=2).eval()
    images = torch.randn(3, 3, 128, 128)
    with torch.no_grad():
        _, attention = attention_of_guess(model, images)
        explained = model.explain(images)
    for b in range(3):
        best = int(model(images)[b].argmax())
        torch.testing.assert_close(attention[b], explained.attention[b, :, best].mean(0))
    torch.testing.assert_close(attention.sum(1), torch.ones(3))


def test_picture_shows_the_attention_where_it_is(tmp_path: Path) -> None:
    """All attention on the upper right cell of a 2x2 map: the brightest part of a black image is there."""
    images = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    probabilities = {"gap": torch.tensor([[0.1, 0.9]]), "noah": torch.tensor([[0.8, 0.2]])}
    attention = torch.tensor([[0.0, 1.0, 0.0, 0.0]])
    draw_comparison(tmp_path / "picture.png", images, [1], ["no", "yes"], probabilities, attention)
    pixels = np.asarray(Image.open(tmp_path / "picture.png").convert("RGB")).astype(int)
    right = pixels[:, int(0.78 * pixels.shape[1]) :]  # the third column
    bright = (right[..., 0] > 120) & (right[..., 2] < 0.7 * right[..., 0])  # inferno's yellow and orange
    rows, columns = np.nonzero(bright)
    assert len(rows) > 100
    dark_rows, dark_columns = np.nonzero(right.sum(-1) < 200)
    assert rows.mean() < dark_rows.mean()
    assert columns.mean() > dark_columns.mean()


def test_backbone_is_swapped_by_one_word() -> None:
    """Models made for one image size are built for the size of the data."""
    backbone = create_model("test_vit", head="noah", num_classes=10, image_size=64).backbone
    assert isinstance(backbone, FeatureMapBackbone)
    assert backbone(torch.randn(1, 3, 64, 64)).shape == (1, 64, 16)


def test_demo_takes_no_head(noah: Noah, tmp_path: Path) -> None:
    answer = noah("demo", "head=gap")
    assert (answer.status, answer.err.count("\n")) == (2, 1)
    assert "trains both heads" in answer.err
    assert list(tmp_path.iterdir()) == []
