"""A sweep on a real SLURM; run by tests/slurm.sh (make test-slurm)."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import TINY, Answer
from noah_lightning.errors import ConfigError
from noah_lightning.sweep.plan import split_options
from noah_lightning.sweep.slurm import launcher_settings

SLURM = ["hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.timeout_min=10"]
TWO_TASKS = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]


def test_the_clusters_settings_are_those_of_the_file_and_the_command_line() -> None:
    options, command = split_options([*SLURM, "+hydra.launcher.additional.qos=high", "seed=0,1"])
    assert (options.launcher, command) == ("slurm", ["seed=0,1"])
    settings = launcher_settings(options.launcher_words)
    assert (settings["cpus_per_task"], settings["timeout_min"]) == (1, 10)
    assert settings["additional"] == {"qos": "high"}


def test_a_setting_of_the_cluster_that_there_is_not_is_named() -> None:
    with pytest.raises(ConfigError, match=r"no setting 'hydra\.launcher\.partitoin'; did you mean partition"):
        launcher_settings(["hydra.launcher.partitoin=gpu"])


@pytest.mark.parametrize(
    "word",
    ["setup=module load", "additional=5", "setup=[module", "partition=${oops", "partition=[a]", "cpus_per_task=many"],
)
def test_a_setting_of_the_cluster_of_another_kind_is_named(word: str) -> None:
    with pytest.raises(ConfigError, match=rf"hydra\.launcher\.{word.partition('=')[0]}"):
        launcher_settings([f"hydra.launcher.{word}"])


def test_settings_of_a_cluster_need_a_cluster() -> None:
    with pytest.raises(ConfigError, match=r"add hydra/launcher=slurm"):
        split_options(["hydra.launcher.partition=gpu", "seed=0,1"])


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


def test_a_mistake_in_the_clusters_settings_leaves_nothing_behind(noah: Callable[..., Answer]) -> None:
    answer = noah("train", "-m", *TINY, "seed=0,1", "hydra/launcher=slurm", "hydra.launcher.partitoin=gpu")
    assert answer.status == 2
    assert "no setting 'hydra.launcher.partitoin'" in answer.err
    assert not Path("runs").exists()


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
    assert answer.err.startswith("noah: SLURM refuses the jobs (")
    assert "invalid partition specified: nowhere" in answer.err
    assert answer.err.count("\n") == 1
