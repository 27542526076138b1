"""A run directory that an earlier version wrote: it resumes exactly, evaluates to its figure and is compared.

``data/old_run/finished`` is a run of version 0.1.0 that was left alone, ``interrupted`` the same one stopped by
SIGTERM after 9 of its 18 steps, in the middle of an epoch.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import Answer
from faults import differences
from noah_lightning.analysis.groups import group_runs
from noah_lightning.callbacks.checkpoints import BestRecord, BestWeights
from noah_lightning.callbacks.progress import EpochReport
from noah_lightning.config import recorded
from noah_lightning.run_dir import RunDir, find_runs

OLD = Path(__file__).parent / "data" / "old_run"


def test_resumes_as_if_it_had_not_been_interrupted(noah: Callable[..., Answer], tmp_path: Path) -> None:
    run = Path(shutil.copytree(OLD / "interrupted", tmp_path / "run"))
    with (run / "metrics.csv").open("a", newline="") as file:
        file.write("1,9,,1.0,1.0,,,,,,,,\r\n")  # logged after the checkpoint, so it goes
    answer = noah("resume", str(run))
    assert answer.status == 0, answer.err
    assert "after 9 steps" in answer.out
    finished = OLD / "finished"
    # Written on an AVX512 machine with torch 2.15; others round otherwise.
    if torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.__version__.startswith("2.15"):
        found = differences(finished, run)
        new = "/metrics_rows", "/best/1/4", "/best_ema/1/4"  # in 0.2; the latter are numbers of classes
        assert [one for one in found if not ("only one has" in one and one.endswith(new))] == []
    assert (run / "metrics.csv").read_text().count("\n") == (finished / "metrics.csv").read_text().count("\n")
    weights, expected = (
        torch.load(one / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for one in (run, finished)
    )
    torch.testing.assert_close(weights, expected, rtol=1e-3, atol=1e-4)
    with np.load(run / "predictions.npz") as ours, np.load(finished / "predictions.npz") as theirs:
        np.testing.assert_array_equal(ours["labels"], theirs["labels"])


def test_the_state_of_each_callback_is_found_again(tmp_path: Path) -> None:
    """By its key in the checkpoint, although a class may be renamed."""
    saved = torch.load(OLD / "interrupted/checkpoints/step-00000009.ckpt", weights_only=True)["callbacks"]

    class Renamed(BestWeights):
        pass

    best = [("best", "val/top1"), ("best_ema", "val/ema_top1")]
    callbacks = [EpochReport(), BestRecord, *(Renamed(tmp_path, *one) for one in best)]
    assert {callback.state_key for callback in callbacks} == set(saved)


@pytest.mark.parametrize(("words", "message"), [([], "loss 2.3778"), (["--ema"], "loss 2.3338")])
def test_evaluates_to_the_same_figure(noah: Callable[..., Answer], words: list[str], message: str) -> None:
    answer = noah("evaluate", str(OLD / "finished"), *words)
    assert answer.status == 0, answer.err
    assert f"val top-1 16.000 % (8 of 50)  top-5 40.000 %  {message}" in answer.out


def test_is_compared(noah: Callable[..., Answer]) -> None:
    answer = noah("compare", str(OLD), "--csv")
    assert answer.status == 0, answer.err
    assert ",8,50," in answer.out  # correct, images


def test_is_of_one_group_with_a_run_that_records_newer_settings(tmp_path: Path) -> None:
    for name in ("before", "now"):
        shutil.copytree(OLD / "finished", tmp_path / name)
    config = RunDir(tmp_path / "now").config().model_copy(update={"seed": 7})
    (tmp_path / "now" / "config.yaml").write_text(recorded.as_yaml(config))
    (group,) = group_runs(find_runs([tmp_path]))
    assert len(group.runs) == 2
