"""``python -m benchmarks.data``: what its report holds, and that both pipelines see the same images."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import data as bench_file
from benchmarks.data import bench_data, make_photographs, official, ours
from noah_lightning.errors import DataError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize(("given", "workers"), [(True, 0), (False, 1)])
def test_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], given: bool, workers: int
) -> None:
    monkeypatch.setattr(bench_file, "PHOTOGRAPHS", 6)
    monkeypatch.setattr(bench_file, "BATCH", 4)
    if given:
        make_photographs(tmp_path, 8)  # more than are seen
    threads = torch.get_num_threads()
    report = bench_data(tmp_path if given else None, workers, rounds=2)
    assert torch.get_num_threads() == threads
    assert report.name == "data"
    assert [figure["pipeline"] for figure in report.figures] == [row[0] for row in report.table.rows]
    assert [figure["images"] for figure in report.figures] == [6, 6, 6]
    for figure in report.figures:
        assert figure["workers"] == workers
        low, high = figure["images_per_second_quartiles"]
        assert 0 < low <= figure["images_per_second"] <= high
    assert report.figures[0]["ratio"] == 1
    assert report.machine["threads"] == 1
    assert report.conclusions == [f"6 images, {workers} workers, batches of 4, 2 rounds"]
    assert json.loads(report.json())["figures"][1]["pipeline"] == "noah_lightning"
    report.show()
    assert "torchvision, PIL" in capsys.readouterr().out


def test_the_pipelines_are_those_they_are_called(tmp_path: Path) -> None:
    make_photographs(tmp_path, 2)
    theirs, own = official(tmp_path), ours(tmp_path)
    assert len(theirs) == len(own) == 2
    assert theirs[0][0].shape == own[0][0].shape == (3, 224, 224)
    assert theirs[0][0].dtype == torch.float32
    assert theirs[0][0].min() < 0, "normalised"
    assert own[0][0].dtype == torch.uint8


def test_the_photographs_are_what_they_are_called(tmp_path: Path) -> None:
    make_photographs(tmp_path, 3)
    files = sorted((tmp_path / "train").glob("*/*.jpg"))
    assert [file.parent.name for file in files] == ["china", "china", "flower"]
    assert len({file.read_bytes() for file in files}) == 3
    for file in files:
        assert 50_000 < file.stat().st_size < 150_000, "bytes, as of ImageNet's"
        with Image.open(file) as image:
            assert image.size == (500, 375)
            assert image.layer[0][1:3] == (2, 2), "4:2:0"  # type: ignore[attr-defined]
            assert np.asarray(image).std() > 30


def test_a_root_without_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no train/ folder"):
        bench_data(tmp_path, 0, 1)
