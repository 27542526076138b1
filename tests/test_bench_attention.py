"""``python -m benchmarks.attention``: where the digit is, shares by hand, and its report."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.attention import boxes, share_inside
from conftest import FinishedRun, call_benchmark
from noah_lightning.data import create_data
from noah_lightning.data.digits import DigitsDataModule


def test_the_box_is_where_the_digit_is() -> None:
    """Without fragments, all that is bright is in the box."""
    data = create_data("digits", val_images=20, num_fragments=0, image_size=40, digit_size=16)
    assert isinstance(data, DigitsDataModule)
    data.setup("validate")
    assert data.val_dataset is not None
    inside = boxes(data)
    assert inside.shape == (20, 40, 40)
    assert inside.flatten(1).sum(1).tolist() == [16 * 16] * 20
    for number in range(20):
        image, _ = data.val_dataset[number]
        assert image[0].sum() > 0
        assert (image[0] * (1 - inside[number])).sum() == 0


def test_a_position_counts_with_the_part_of_it_that_is_inside() -> None:
    """A box over the upper left 6 × 4 of 8 × 8 pixels covers one cell of a 2 × 2 map, and half of that below."""
    box = torch.zeros(1, 8, 8)
    box[0, :6, :4] = 1
    assert share_inside(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), box).tolist() == pytest.approx([(1 + 3 / 2) / 10])
    assert share_inside(torch.ones(1, 4), box).tolist() == pytest.approx([float(box.mean())])
    assert share_inside(torch.zeros(1, 4), box).isnan().all()


def test_report(finished_run: FinishedRun) -> None:
    answer = call_benchmark("attention", str(finished_run.path), "--images", "10", "--json")
    assert answer.status == 0, answer.err
    [figure] = json.loads(answer.out)["figures"]
    assert (figure["head"], figure["images"]) == ("noah", 10)
    assert figure["area"] == pytest.approx(24 * 24 / 64**2)
    assert 0 < figure["contribution"] <= 1
    assert 0 < figure["attention"] <= 1
    table = call_benchmark("attention", str(finished_run.path), "--images", "10").out
    assert "contribution in the box" in table
    assert "14.1 %" in table


def test_mistakes_are_one_line(finished_run: FinishedRun, tmp_path: Path) -> None:
    for words, says in (
        ([str(finished_run.path)], "has 50 validation images; choose --images 50 or fewer"),
        ([str(tmp_path)], "is not a run directory"),
    ):
        answer = call_benchmark("attention", *words)
        assert (answer.status, answer.err.count("\n")) == (2, 1), answer.err
        assert says in answer.err
