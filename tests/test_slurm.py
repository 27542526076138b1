"""A sweep on a real SLURM; run by tests/slurm.sh (make test-slurm)."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from conftest import TINY, Answer
from noah_lightning.sweep import clusters
from test_sweep import lines

SLURM = ["hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.timeout_min=10"]
TWO_TASKS = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("partitoin=gpu", "hydra/launcher=slurm has no setting 'partitoin'; did you mean partition"),
        ("setup=[module", "'hydra.launcher.setup=[module' cannot be parsed"),
        ("setup=module", "setup"),
        ("additional=5", "additional"),
        ("partition=[a]", "partition"),
        ("partition=${oops}", "oops"),
        ("cpus_per_task=many", "'hydra.launcher.cpus_per_task=many' cannot be set: Value 'many' of type 'str'"),
    ],
)
def test_a_mistake_in_the_clusters_settings_leaves_nothing_behind(
    noah: Callable[..., Answer], word: str, message: str
) -> None:
    answer = noah("train", "-m", *TINY, "seed=0,1", "hydra/launcher=slurm", f"hydra.launcher.{word}")
    assert answer.status == 2
    assert message in answer.err
    assert answer.err.count("\n") == 1
    assert not Path("runs").exists()


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    program = [sys.executable, "-m", "noah_lightning", "train", "-m", *TINY, *SLURM, *TWO_TASKS, *words]
    log = (folder / "out.txt").open("w")
    return subprocess.Popen(program, cwd=folder, stdout=log, stderr=subprocess.STDOUT, text=True)


def wait_until(true: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "took too long"
        time.sleep(0.2)


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A folder that the cluster's node sees too."""
    assert shutil.which("sbatch"), "run this through make test-slurm"
    return tmp_path


@pytest.mark.slurm
def test_a_job_of_two_tasks_trains(shared: Path) -> None:
    process = start(shared, "seed=0", "sweep.dir=sweep")
    assert process.wait(240) == 0, (shared / "out.txt").read_text()
    assert (shared / "sweep/0/results.json").exists()
    assert "val top-1" in (shared / "sweep/0/train.log").read_text()
    assert sorted(path.name for path in (shared / "sweep").iterdir()) == [".slurm", "0", "sweep.json"]


@pytest.mark.slurm
def test_a_requeued_job_finishes_in_the_same_directory(shared: Path) -> None:
    epochs = 40
    long = [f"trainer.max_epochs={epochs}", "trainer.log_every_n_steps=1000"]
    process = start(shared, "seed=0", *long, "sweep.dir=sweep")
    run = shared / "sweep" / "0"
    wait_until(lambda: (run / "checkpoints/last.ckpt").exists(), 120)
    wait_until(lambda: "epoch 3/" in (run / "train.log").read_text(), 60)
    job = re.search(r"as SLURM job (\S+)", (shared / "out.txt").read_text())
    assert job
    subprocess.run(["scontrol", "requeue", job[1]], check=True)
    assert process.wait(500) == 0, (shared / "out.txt").read_text() + (run / "train.log").read_text()
    log = (run / "train.log").read_text()
    assert "stopped  by SIGTERM" in log
    assert "resumed  after" in log
    assert (run / "results.json").exists()
    told = [int(number) for number in re.findall(r"epoch (\d+)/\d+  train loss", log)]
    assert sorted(set(told)) == list(range(1, epochs + 1))
    assert len(told) <= epochs + 1, "at most the epoch that was cut off is repeated"
    rows = (run / "metrics.csv").read_text().splitlines()
    assert len([row for row in rows if row]) > epochs
    assert os.listdir(shared / "sweep" / ".slurm")


def test_jobs_that_slurm_refuses_are_one_line(
    noah: Callable[..., Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("submitit")
    (tmp_path / "bin").mkdir()
    for name in ("sbatch", "srun"):
        program = tmp_path / "bin" / name
        program.write_text("#!/bin/sh\necho 'sbatch: error: invalid partition specified: nowhere' >&2\nexit 1\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    words = ["seed=0,1", "hydra/launcher=slurm", "hydra.launcher.partition=nowhere", "sweep.dir=sweep"]
    answer = noah("train", "-m", *TINY, *words)
    assert answer.status == 2
    assert answer.err.startswith("noah: SLURM rejects the jobs (")
    assert "invalid partition specified: nowhere" in answer.err
    assert answer.err.count("\n") == 1


def test_a_job_is_what_the_settings_ask_for(noah: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch) -> None:
    """With a pretended cluster, whose tasks run here."""
    submitit = pytest.importorskip("submitit")
    asked: dict[str, Any] = {}

    class Executor:
        def __init__(self, folder: Path) -> None:
            asked["folder"] = str(folder)

        def update_parameters(self, **settings: Any) -> None:
            asked.update(settings)

        def batch(self) -> Any:
            return nullcontext()

        def submit(self, task: clusters.SlurmTask, payload: bytes) -> Any:
            outcome = task(payload)
            return SimpleNamespace(job_id="7", done=lambda: True, exception=lambda: None, results=lambda: [outcome])

    monkeypatch.setattr(submitit, "SlurmExecutor", Executor)
    monkeypatch.setattr(clusters, "_POLL_SECONDS", 0)
    words = ["trainer.max_epochs=1", "seed=0,1", "recipe.optimizer.lr=0.01", "sweep.dir=sweep"]
    answer = noah("train", "-m", *TINY, *SLURM, *words, "+hydra.launcher.additional.qos=high")
    assert answer.status == 0, answer.err
    assert [line.split(": ")[0] for line in lines(answer, "finished")] == ["0  seed=0", "1  seed=1"]
    assert lines(answer, "submitted") == ["0  seed=0  as SLURM job 7", "1  seed=1  as SLURM job 7"]
    assert (asked["folder"], asked["job_name"]) == ("sweep/.slurm", "noah-sweep")
    assert (asked["cpus_per_task"], asked["time"], asked["ntasks_per_node"]) == (1, 10, 1)
    assert asked["additional_parameters"] == {"requeue": True, "qos": "high"}
    assert {path.parent.name for path in Path("sweep").glob("*/results.json")} == {"0", "1"}
