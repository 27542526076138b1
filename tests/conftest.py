"""What several test files share: a tiny run, and the command line called as a function."""

import contextlib
import gc
import io
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import huggingface_hub
import pytest
import torch
from PIL import Image

from noah_lightning.cli import main
from noah_lightning.distributed import launcher

# Test processes run side by side; more threads than cores would slow all of them, and the processes they start.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["XDG_CACHE_HOME"] = str(Path(__file__).parents[1] / ".pytest_cache" / "home")  # lists of test images
# Torch decides at the first backward pass whether it starts threads, which forked processes could not use; after a
# compilation it would start some.
torch.ones(1, requires_grad=True).sum().backward()
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported: its kernels run as Python, on the CPU

# A run of seconds: the digits, few of them, and timm's smallest ResNet.
TINY = [
    "experiment=demo",
    "model=timm",
    "model.name=test_resnet",
    "data.train_images=96",
    "data.val_images=50",
    "recipe.batch_size=32",
    "trainer.max_epochs=2",
    "trainer.log_every_n_steps=2",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without a GPU, what needs one is skipped."""
    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@dataclass
class Answer:
    """What a command left: exit status, standard output, standard error."""

    status: int
    out: str
    err: str


def call_noah(*argv: str) -> Answer:
    """``noah <argv>`` in this process and the current folder."""
    out, err = io.StringIO(), io.StringIO()
    full_error = os.environ.pop("HYDRA_FULL_ERROR", None)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                status = main(list(argv))
            except SystemExit as stop:  # argparse
                status = int(stop.code or 0)
    finally:
        if full_error is not None:
            os.environ["HYDRA_FULL_ERROR"] = full_error
    return Answer(status, out.getvalue(), err.getvalue())


def call_benchmark(name: str, *argv: str) -> Answer:
    """``python -m benchmarks.<name> <argv>`` in this process."""
    out, err = io.StringIO(), io.StringIO()
    before = sys.argv
    sys.argv = [f"{name}.py", *argv]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                import_module(f"benchmarks.{name}").main()
                status = 0
            except SystemExit as stop:
                status = int(stop.code or 0)
    finally:
        sys.argv = before
    return Answer(status, out.getvalue(), err.getvalue())


@pytest.fixture
def noah(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Answer]:
    """The command line, called from an empty folder."""
    monkeypatch.chdir(tmp_path)
    return call_noah


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our launcher forks this process instead of spawning new ones."""
    gc.collect()  # a forked process would crash when it deletes what an earlier launch left in reference cycles
    monkeypatch.setattr(launcher, "START_METHOD", "fork")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # a forked process may not use the GPU


@dataclass
class FinishedRun:
    path: Path
    answer: Answer


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FinishedRun]:
    """One tiny training run with NOAH; tests only read it."""
    folder = tmp_path_factory.mktemp("finished")
    path = folder / "run"
    before = Path.cwd()
    os.chdir(folder)
    try:
        answer = call_noah("train", *TINY, "head=noah", f"hydra.run.dir={path}")
    finally:
        os.chdir(before)
    assert answer.status == 0, answer.err
    return FinishedRun(path, answer)


@pytest.fixture
def jpeg_tree(tmp_path: Path) -> Path:
    """root/{train,val}/{ant,bee}/*.jpg: plain red and plain blue images, which any model can tell apart."""
    root = tmp_path / "insects"
    for split, count in (("train", 8), ("val", 3)):
        for name, color in (("ant", (200, 30, 30)), ("bee", (30, 30, 200))):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                shade = tuple(min(255, channel + 5 * i) for channel in color)
                Image.new("RGB", (48, 40), shade).save(folder / f"{i}.jpg")
    return root


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network and an empty cache, on any machine."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
