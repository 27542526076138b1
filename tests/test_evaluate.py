"""``noah evaluate`` reproduces a run's accuracy from its directory, and trusts nothing it finds there."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from conftest import TINY, Answer, FinishedRun, call_noah
from noah_lightning.models.classifier import create_model
from noah_lightning.run_dir import RunDir

Noah = Callable[..., Answer]
VAL = re.compile(r"val (top-1 .* loss \S+)")


@pytest.fixture
def run_copy(finished_run: FinishedRun, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run.path, tmp_path / "copy"))


def test_best_is_the_training_log_to_the_last_digit(finished_run: FinishedRun) -> None:
    answer = call_noah("evaluate", str(finished_run.path))
    assert answer.status == 0, answer.err
    best = finished_run.answer.out.splitlines()[-1]
    assert best.startswith("best ")
    assert VAL.search(answer.out)[1] == VAL.search(best)[1]


def test_last_is_the_last_epoch(finished_run: FinishedRun) -> None:
    answer = call_noah("evaluate", str(finished_run.path), "--checkpoint", "last")
    last_epoch = next(line for line in finished_run.answer.out.splitlines() if line.startswith("epoch 2/2  train"))
    assert VAL.search(answer.out)[1] in last_epoch


def test_nothing_is_added_to_the_run(finished_run: FinishedRun) -> None:
    before = sorted(finished_run.path.rglob("*"))
    call_noah("evaluate", str(finished_run.path))
    assert sorted(finished_run.path.rglob("*")) == before


def test_overrides_change_the_data(finished_run: FinishedRun) -> None:
    answer = call_noah("evaluate", str(finished_run.path), "data.val_images=20")
    assert "of 20)" in answer.out


def test_a_vit_that_started_from_weights_is_rebuilt_with_its_class_token(noah: Noah, tmp_path: Path) -> None:
    """Its starting weights may be gone by then; the checkpoint holds all there is to know."""
    weights = tmp_path / "vit.pt"
    torch.save(create_model("test_vit", num_classes=5, image_size=64).state_dict(), weights)
    vit = [*TINY, "model.name=test_vit", f"model.weights={weights}", "head=noah", "hydra.run.dir=run"]
    trained = noah("train", *vit)
    assert trained.status == 0, trained.err
    weights.unlink()
    answer = noah("evaluate", "run")
    assert answer.status == 0, answer.err
    assert VAL.search(answer.out)[1] == VAL.search(trained.out.splitlines()[-1])[1]


@pytest.mark.parametrize("folder", ["", "~/"])
def test_paths_are_recorded_so_that_they_are_valid_in_any_folder(
    noah: Noah, jpeg_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    torch.save(create_model("test_resnet", num_classes=2).state_dict(), "start.pt")
    words = ["model=timm", "model.name=test_resnet", "head=gap", "recipe.batch_size=4", "trainer.max_epochs=1"]
    words += ["data=imagefolder", "data.image_size=32", "data.num_workers=0", f"data.root='{folder}insects'"]
    trained = noah("train", *words, f"model.weights='{folder}start.pt'", "hydra.run.dir=run")
    assert trained.status == 0, trained.err
    config = RunDir(Path("run")).config()
    assert (config.data.root, config.model.weights) == (str(jpeg_tree), str(tmp_path / "start.pt"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    monkeypatch.delenv("HOME")
    answer = noah("evaluate", str(tmp_path / "run"))
    assert answer.status == 0, answer.err
    assert VAL.search(answer.out)[1] == VAL.search(trained.out.splitlines()[-1])[1]
    assert noah("evaluate", "../run").out.partition("  val")[2] == answer.out.partition("  val")[2]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["/nowhere"], ["/nowhere", "not a run directory"]),
        (["{run}", "data.foo=1"], ["data.foo"]),
        (["{run}", "--ema"], ["{run} has no average of the weights", "recipe.ema=null"]),
        (["--ema", "{run}", "recipe.ema=0.9"], ["no checkpoint", "best_ema.ckpt"]),
        (["--ema", "--checkpoint=last", "{run}", "recipe.ema=0.9"], ["last.ckpt", "has no average of the weights"]),
        (["{run}", "head.head_num=2"], ["best.ckpt", "does not fit the model"]),
        (["{run}", "head.head_num=5"], ["head_num=5"]),
        (["{run}", "data.num_classes=7"], ["does not fit the model"]),
        (["{run}", "data.root"], ["key=value"]),
        (["{run}", "seed=${{oc.env:HOME}}"], ["seed", "write its value"]),
    ],
)
def test_mistakes_are_one_line(finished_run: FinishedRun, arguments: list[str], says: list[str]) -> None:
    answer = call_noah("evaluate", *(argument.format(run=finished_run.path) for argument in arguments))
    assert (answer.status, answer.err.count("\n")) == (2, 1)
    for part in says:
        assert part.format(run=finished_run.path) in answer.err


class Hostile:
    """Unpickled without care, it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (open, (str(self.path), "w"))


def spoil_checkpoint(run: Path, how: str) -> None:
    path = run / "checkpoints/best.ckpt"
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(path.read_bytes()[:5000])
    elif how == "text":
        path.write_text("weights")
    elif how == "no weights":
        torch.save({"epoch": 3}, path)
    else:
        torch.save({"state_dict": {"a": Hostile(run / "pwned")}}, path)


@pytest.mark.parametrize("how", ["missing", "truncated", "text", "no weights", "hostile"])
def test_bad_checkpoints_are_refused_in_one_line(run_copy: Path, how: str) -> None:
    spoil_checkpoint(run_copy, how)
    answer = call_noah("evaluate", str(run_copy))
    assert (answer.status, answer.err.count("\n")) == (2, 1)
    assert "best.ckpt" in answer.err
    assert not (run_copy / "pwned").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("model: [", "not valid YAML"),
        ("- a\n- b\n", "not a run's configuration"),
        (
            "model: {}\ndata: {}\nhead: {}\nrecipe: {}\ntrainer: {}\nseed: ${oc.env:HOME}\n",
            "refers to other settings",
        ),
        ("model: {}\n", "data, head, recipe, trainer missing"),
        ("model: !!python/object/apply:os.system ['touch pwned']\n", "not valid YAML"),
    ],
)
def test_bad_configurations_are_refused_in_one_line(noah: Noah, run_copy: Path, text: str, says: str) -> None:
    (run_copy / "config.yaml").write_text(text)
    answer = noah("evaluate", str(run_copy))
    assert (answer.status, answer.err.count("\n")) == (2, 1)
    assert says in answer.err
    assert not Path("pwned").exists()


def test_a_folder_of_runs_names_them(finished_run: FinishedRun) -> None:
    answer = call_noah("evaluate", str(finished_run.path.parent))
    assert answer.status == 2
    assert f"there are runs inside: {finished_run.path}\n" in answer.err
