"""Loaders stuck in a read, as on storage that hangs: SIGTERM, or a second Ctrl-C, still ends the run."""

import os
import re
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader

from commands import Command
from conftest import TINY
from noah_lightning.distributed import signals
from noah_lightning.distributed.signals import StopRequest

PLUGIN = """
import os

import torch

from noah_lightning.data import register_data
from noah_lightning.data.datamodule import ImageDataModule
from noah_lightning.distributed import signals

signals.PATIENCE = float(os.environ["PATIENCE"])


class Images:
    classes = ["ant", "bee"]

    def __init__(self, stuck):
        self.stuck = stuck

    def __len__(self):
        return 32

    def __getitem__(self, index):
        if self.stuck and index == 31:
            open("reading", "w").close()
            open("pipe").read()  # nobody ever writes to it
        return torch.zeros(3, 32, 32, dtype=torch.uint8), index % 2


@register_data("stuck")
class Stuck(ImageDataModule):
    def build(self, split):
        return Images(split == os.environ["SPLIT"])
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "hanging.py").write_text(PLUGIN)
    os.mkfifo(tmp_path / "pipe")
    return tmp_path


def start(folder: Path, split: str, workers: int, patience: float, *more: str) -> Command:
    """A run that is stuck in a read."""
    words = [word for word in TINY if word != "experiment=demo" and not word.startswith("data.")]
    run = Command(
        "train",
        *("data=plugin", "data.name=stuck", "plugins=[hanging]", "data.num_classes=2", "data.image_size=32"),
        *("data.mean=[0.5,0.5,0.5]", "data.std=[0.5,0.5,0.5]", f"data.num_workers={workers}", "recipe=digits"),
        *("head=gap", "hydra.run.dir=run", *words, *more),
        cwd=folder,
        out=folder / "out",
        SPLIT=split,
        PATIENCE=str(patience),
    )
    for _ in range(600):
        if (folder / "reading").exists():
            return run
        assert run.poll() is None, (folder / "out").read_text()
        time.sleep(0.1)
    raise AssertionError("it reads no image")


def assert_no_process(run: Command) -> None:
    with pytest.raises(ProcessLookupError):
        os.killpg(run.pid, 0)


@pytest.mark.parametrize(
    ("split", "workers"), [("train", 0), ("val", 2), pytest.param("train", 2, marks=pytest.mark.slow)]
)
def test_sigterm_ends_the_run(folder: Path, split: str, workers: int) -> None:
    run = start(folder, split, workers, 0.5)
    run.send_signal(signal.SIGTERM)
    assert run.wait(60) == 128 + signal.SIGTERM
    last = (folder / "out").read_text().splitlines()[-1]
    assert "interrupted in epoch 1, as the next batch did not arrive" in last
    assert last.endswith(f"noah resume {folder}/run")
    assert_no_process(run)


@pytest.mark.slow
def test_a_stuck_process_ends_all(folder: Path) -> None:
    run = start(folder, "train", 1, 0.5, "trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu")
    run.send_signal(signal.SIGTERM)
    assert run.wait(60) == 128 + signal.SIGTERM, (folder / "out").read_text()
    last = (folder / "out").read_text().splitlines()[-1]
    assert re.search(rf"interrupted in epoch 1, as .*; noah resume {folder}/run$", last)
    assert_no_process(run)


class Slow:
    """Each image takes as many seconds as its number says."""

    def __init__(self, *seconds: float) -> None:
        self.seconds = seconds

    def __len__(self) -> int:
        return len(self.seconds)

    def __getitem__(self, index: int) -> float:
        time.sleep(self.seconds[index])
        return self.seconds[index]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_slow_loader_is_waited_for(monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    """As by a validation, which is finished and whose result is saved before the run ends."""
    monkeypatch.setattr(signals, "PATIENCE", 0.3)
    before, stop = signal.getsignal(signal.SIGALRM), StopRequest()
    with stop.listening():
        slow, stuck = (iter(loader(workers, *seconds)) for seconds in ([0.2] * 8, [0.0, 60.0]))
        next(slow)
        os.kill(os.getpid(), signal.SIGTERM)
        assert len(list(slow)) == 7
        assert not stop.stuck
        next(stuck)
        start = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            next(stuck)
        assert time.monotonic() - start < 10
        assert stop.stuck
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGALRM) == before


def loader(workers: int, *seconds: float) -> DataLoader[Any]:
    slow: Any = Slow(*seconds)
    return DataLoader(slow, batch_size=1, num_workers=workers)


def test_a_second_ctrl_c_ends_it_sooner(folder: Path) -> None:
    run = start(folder, "train", 2, 1000)
    for _ in range(20):  # two are enough if the first is handled at once, which takes longer on a busy machine
        run.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            run.wait(1.5)
            break
    assert run.poll() == 130, (folder / "out").read_text()
    last = (folder / "out").read_text().splitlines()[-1]
    assert last.endswith(f"interrupted in epoch 1; noah resume {folder}/run")
    assert_no_process(run)
