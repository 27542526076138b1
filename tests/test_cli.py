"""The command line itself: help, exit statuses, the script in the clone, start-up."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import noah_lightning
from conftest import TINY, Answer, call_benchmark
from noah_lightning.cli import commands
from noah_lightning.loggers import console

Noah = Callable[..., Answer]
REPOSITORY = Path(__file__).parents[1]


def test_help_names_every_command(noah: Noah) -> None:
    answer = noah("--help")
    assert answer.status == 0
    for command in ("train", "evaluate", "demo"):
        assert f"  {command} " in answer.out


def test_help_of_train_names_groups_and_examples(noah: Noah) -> None:
    answer = noah("train", "--help")
    assert answer.status == 0
    for line in (
        "noah train model=resnet50 head=noah",
        "avg, avgmax",
        "fashion_mnist, imagefolder",
    ):
        assert line in answer.out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["data", "--workers", "-1"], "argument --workers: '-1' is not an integer of at least 0"),
        (["step", "--rounds", "0"], "argument --rounds: '0' is not an integer of at least 1"),
    ],
)
def test_a_number_that_is_none_is_one_line(words: list[str], told: str) -> None:
    answer = call_benchmark(*words)
    assert answer.status == 2
    assert told in answer.err.splitlines()[-1]


def test_version(noah: Noah) -> None:
    assert noah("--version").out == f"noah_lightning {noah_lightning.__version__}\n"


HEAVY = {"torch", "timm", "lightning", "torchvision", "torchmetrics", "numpy", "wandb", "matplotlib"}
COMPOSED = [  # with their exit statuses
    (["--cfg", "job", "--resolve", "experiment=demo"], 0),
    (["--cfg", "job", "--resolve", "data=imagefolder", "data.root=."], 0),  # its classes are counted
    (["experiment=demo", "trainer=ddp", "trainer.devices=3"], 2),  # a batch that cannot be divided
    (["experiment=demo", "seed=abc"], 2),
    (["headd.head_num=4"], 2),
]
COMPOSE = """
import sys
from noah_lightning.cli import main
from noah_lightning.cli.commands import make_parser

make_parser()
print(*sys.modules)
for words in eval(sys.argv[1]):
    print(main(["train", *words]))
    print(*sys.modules)
"""


def test_help_and_composing_a_configuration_import_nothing_heavy(tmp_path: Path) -> None:
    (tmp_path / "train" / "ant").mkdir(parents=True)
    command = [sys.executable, "-c", COMPOSE, repr([words for words, _ in COMPOSED])]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    modules = [set(line.split()) for line in lines if line.startswith("sys builtins ")]
    assert len(modules) == 1 + len(COMPOSED)
    assert not (HEAVY | {"hydra"}) & modules[0]
    assert not any(HEAVY & imported for imported in modules)
    assert [int(line) for line in lines if line.isdecimal()] == [status for _, status in COMPOSED], done.stderr


def test_train_py_is_noah_train() -> None:
    done = subprocess.run(
        [sys.executable, "train.py", "--cfg", "job", "model=resnet50"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "name: resnet50" in done.stdout


def test_train_py_tells_a_mistake_in_one_line() -> None:
    done = subprocess.run([sys.executable, "train.py", "head=none"], cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "noah: head has no option 'none'; did you mean noah?\n"


def test_ctrl_c_before_training_is_one_line(noah: Noah, monkeypatch: pytest.MonkeyPatch) -> None:
    def demo(arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "demo", demo)
    answer = noah("demo")
    assert (answer.status, answer.err) == (130, "noah: interrupted\n")


def test_on_a_terminal_a_progress_bar_is_drawn(noah: Noah, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "on_terminal", lambda: True)
    assert noah("train", *TINY, "head=gap", "hydra.run.dir=run").status == 0
    assert "left in the epoch" not in Path("run/train.log").read_text()
    assert "epoch 2/2" in Path("run/train.log").read_text()


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (75, "1:15"), (3599.6, "1:00:00"), (3700, "1:01:40")])
def test_duration(seconds: float, text: str) -> None:
    assert console.duration(seconds) == text


@pytest.mark.slow
def test_wheel_trains_from_an_empty_environment(tmp_path: Path) -> None:
    """Builds the wheel and unpacks it beside this environment's packages, away from the clone and its conf/."""
    subprocess.run([sys.executable, "-m", "build", "--wheel", "-o", tmp_path, REPOSITORY], check=True)
    [wheel] = tmp_path.glob("*.whl")
    subprocess.run([sys.executable, "-m", "zipfile", "-e", wheel, tmp_path / "site"], check=True)
    done = subprocess.run(
        [sys.executable, "-m", "noah_lightning", "train", *TINY],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "site"), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("runs/*/*/results.json"))
