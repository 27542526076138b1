"""TensorBoard and Weights & Biases beside metrics.csv."""

import csv
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from conftest import TINY, Answer, FinishedRun

Noah = Callable[..., Answer]


def validations(run: Path) -> list[float]:
    with (run / "metrics.csv").open() as file:
        return [float(row["val/top1"]) for row in csv.DictReader(file) if row["val/top1"]]


def test_tensorboard_gets_what_the_csv_gets(noah: Noah) -> None:
    answer = noah("train", *TINY, "head=gap", "logger=tensorboard", "hydra.run.dir=run")
    assert answer.status == 0, answer.err
    events = EventAccumulator("run/tensorboard").Reload()
    assert [event.value for event in events.Scalars("val/top1")] == pytest.approx(validations(Path("run")))


def test_wandb_without_an_account_runs_offline_and_asks_nothing(tmp_path: Path) -> None:
    """In a process of its own, whose standard input would answer no question."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    environment |= {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc"), "OMP_NUM_THREADS": "1"}
    overrides = [
        *TINY,
        "head=noah",
        "trainer.max_epochs=1",
        "logger=wandb",
        "logger.group=a-group-of-runs",
        "hydra.run.dir=run",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "noah_lightning", "train", *overrides],
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    [run] = (tmp_path / "run" / "wandb").glob("offline-run-*")
    [record] = run.glob("*.wandb")
    for part in (b"a-group-of-runs", b'"name":"noah"', b"val/top1", b"val/images"):  # group, configuration, metrics
        assert part in record.read_bytes()
    assert validations(tmp_path / "run")


def test_an_unknown_wandb_mode_is_one_line(noah: Noah) -> None:
    answer = noah("train", *TINY, "logger=wandb", "logger.mode=onlin")
    assert (answer.status, answer.err) == (
        2,
        "noah: logger.mode='onlin' must be online, offline or disabled\n",
    )


def test_the_csv_alone_is_the_default(finished_run: FinishedRun) -> None:
    assert validations(finished_run.path)
    assert not list(finished_run.path.glob("wandb*"))
    assert not list(finished_run.path.rglob("events*"))
