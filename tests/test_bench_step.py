"""``python -m benchmarks.step``: what its report holds, and that both ways of training do the same work."""

import json

import pytest
import torch
from torch import nn

from benchmarks import step as bench
from benchmarks.step import BARE, OURS, Case, bench_step, compare
from benchmarks.trainer import NoiseDataModule, Turns

CASE = Case("tiny", lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, bench.CLASSES)), 4, steps=3)


def test_report(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(bench, "CASES", (CASE, CASE))
    report = bench_step(rounds=2)
    assert report.name == "step"
    assert [(figure["model"], figure["steps"]) for figure in report.figures] == [("tiny", 3)] * 2
    for figure in report.figures:
        for key in ("bare_seconds", "ours_seconds", "ratio"):
            low, high = figure[f"{key}_quartiles"]
            assert 0 < low <= figure[key] <= high
    assert report.conclusions == ["batches of 32, 2 rounds of 3 and 3 steps; medians (quartiles)"]
    assert json.loads(report.json())["figures"][0]["model"] == "tiny"
    report.show()
    assert "ours / bare" in capsys.readouterr().out


def test_both_ways_do_the_same_steps() -> None:
    start = CASE.make().state_dict()
    end = compare(CASE, rounds=2)
    assert [len(end.seconds[name]) for name in (BARE, OURS)] == [2, 2]  # the first round does not count
    ours, bare = end.models[OURS].state_dict(), end.models[BARE].state_dict()
    for name, weights in ours.items():
        torch.testing.assert_close(bare[name], weights, rtol=0, atol=0, msg=name)
        assert not torch.equal(weights, start[name])


def test_the_turns_come_by_turns() -> None:
    """Each turn of ours ends when the trainer asks for the batch behind it; the last batch is for that alone."""
    events: list[str] = []
    data = NoiseDataModule(4, 2, 7, classes=3)
    data.setup("fit")
    turns = Turns(iter(data.loader()), 2, 2, lambda: events.append("other"))
    for images, labels in turns:
        assert (images.shape, images.dtype, labels.shape) == ((2, 3, 4, 4), torch.uint8, (2,))
        events.append("ours")
    assert len(turns) == events.count("ours") == 7
    assert events == ["ours", "ours", "other"] * 3 + ["ours"]
