"""``python -m benchmarks.study``: its tables hold what the run directories hold, and a second call trains nothing."""

import re
import statistics
import struct
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from benchmarks import study
from conftest import call_benchmark
from noah_lightning.run_dir import RESULTS, RunDir

SPLITS = {"train": 200, "t10k": 200}


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Bars of different heights in noise, as files in the IDX format, and weights of timm's smallest ResNet."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for prefix, number in SPLITS.items():
        labels = (np.arange(number) % 10).astype(np.uint8)
        images = rng.integers(0, 200, (number, 28, 28), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[2 * label + 2 : 2 * label + 8] //= 4
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
            (tmp_path / f"{prefix}-{name}-ubyte").write_bytes(header + array.tobytes())
    torch.manual_seed(0)
    torch.save(timm.create_model("test_resnet", num_classes=1000).state_dict(), tmp_path / "weights.pt")
    words = "--data . --weights weights.pt --model test_resnet --output out --document docs/study.md --quick"
    return words.split()


def row(text: str, head: str) -> list[str]:
    """The cells of the first row of a Markdown table that begins with ``head``."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {head} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def of_head(head: str) -> list[RunDir]:
    runs = [RunDir(path.parent) for path in sorted(Path("out/frozen").glob(f"*/{RESULTS}"))]
    return [run for run in runs if run.settings["head.name"] == head]


@pytest.mark.slow
def test_tables_are_those_of_the_runs_and_a_second_call_trains_nothing(options: list[str]) -> None:
    parts = ["--parts", "frozen,init,grid"]
    first = call_benchmark("study", *options, *parts)
    assert first.status == 0, first.err
    text = Path("docs/study.md").read_text()
    for head in study.QUICK_HEADS:
        cells, runs = row(text, head), of_head(head)
        top1 = [run.results().top1 for run in runs]
        assert len(runs) == 2
        assert cells[1:3] == ["2", f"{statistics.mean(top1):.2f} ± {statistics.stdev(top1):.2f}"]
        pace = statistics.mean(run.results().images_per_second for run in runs)
        assert cells[7:9] == [f"{runs[0].results().parameters:,}", f"{1000 / pace:.3f}"]
    right = [[run.predictions().right for run in of_head(head)] for head in ("noah", "avg")]
    points = 100 * (np.mean(right[0]) - np.mean(right[1]))
    duels = text[text.index("NOAH against") :]
    assert float(row(duels, "avg")[1].replace("−", "-")) == pytest.approx(points, abs=0.006)
    assert {"N = 1", "N = 4"} <= set(re.findall(r"N = \d+", text))
    assert {tuple(row(text, name)[2:3]) for name in ("official", "small")} == {("2",)}
    assert text.count("    noah train -m ") == 3
    assert "features of the 400 images" in text
    assert "Over 2 seeds and 1 epoch, NOAH with init=" in text
    frozen = text[text.index("## Frozen features") : text.index("## Frozen features, trained for longer")]
    found = re.search(r"highest of the learning rates was chosen for (.*);", frozen)
    highest = {head for head in study.QUICK_HEADS if of_head(head)[0].settings["recipe.optimizer.lr"] == 1}
    assert set(found.group(1).split(", ") if found else ()) == highest
    assert "## Fine-tuned\n\nNot run." in text
    for picture in re.findall(r"\]\((study/.*png)\)", text):
        assert Path("docs", picture).stat().st_size < 150_000
    before = {path: path.stat().st_mtime_ns for path in Path("out").glob(f"*/*/{RESULTS}")}
    second = call_benchmark("study", *options, *parts)
    assert second.status == 0, second.err
    assert {path: path.stat().st_mtime_ns for path in Path("out").glob(f"*/*/{RESULTS}")} == before
    assert "finished already: 0-5" in second.out
    assert Path("docs/study.md").read_text() == text


@pytest.mark.slow
def test_fine_tuning_and_what_is_missing_is_said(options: list[str]) -> None:
    answer = call_benchmark("study", *options, "--parts", "tuned", "--tune-heads", "gap,noah,cls_mean")
    assert answer.status == 0, answer.err
    text = Path("docs/study.md").read_text()
    assert "Without a finished run: cls_mean." in text
    assert "## Frozen features\n\nNot run." in text
    [run] = [RunDir(path.parent) for path in Path("out/tuned").glob(f"*/{RESULTS}") if "noah" in _head(path)]
    assert row(text, "noah")[2] == f"{run.results().top1:.2f}"
    Path("docs/study.md").unlink()
    assert call_benchmark("study", *options, "--report").status == 0
    assert Path("docs/study.md").read_text() == text


def _head(results: Path) -> str:
    return str(RunDir(results.parent).settings["head.name"])


def test_mistakes_are_one_line(options: list[str]) -> None:
    for words, says in (
        (["--report"], "out has no finished run of the study"),
        (["--parts", "froze"], "there is no part froze; the parts are frozen, long, init, grid, tuned"),
    ):
        answer = call_benchmark("study", *options, *words)
        assert (answer.status, answer.err.count("\n")) == (2, 1), answer.err
        assert says in answer.err
