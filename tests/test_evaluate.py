"""``noah evaluate`` reproduces a run's accuracy from its directory, and trusts nothing it finds there."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from conftest import TINY, Answer, FinishedRun, call_noah
from noah_lightning.models.classifier import create_model

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


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["/nowhere"], ["/nowhere", "no run directory"]),
        (["{run}", "data.foo=1"], ["data.foo"]),
        (["{run}", "--ema"], ["{run} keeps no average of the weights", "recipe.ema=null"]),
        (["--ema", "{run}", "recipe.ema=0.9"], ["no checkpoint", "best_ema.ckpt"]),
        (["--ema", "--checkpoint=last", "{run}", "recipe.ema=0.9"], ["last.ckpt", "not of the model"]),
        (["{run}", "head.head_num=2"], ["best.ckpt", "not of the model"]),
        (["{run}", "head.head_num=5"], ["head_num=5"]),
        (["{run}", "data.num_classes=7"], ["not of the model"]),
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
        ("- a\n- b\n", "no run's configuration"),
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


@pytest.mark.parametrize("group", ["head", "data", "model.args", "trainer"])
def test_a_target_in_a_configuration_is_never_called(noah: Noah, run_copy: Path, group: str) -> None:
    """Configuration names heads and data sets by registered names; a key such as _target_ is an unknown setting."""
    from omegaconf import OmegaConf

    config = OmegaConf.load(run_copy / "config.yaml")
    OmegaConf.update(config, group, {"_target_": "os.system", "command": "touch pwned"}, force_add=True)
    OmegaConf.save(config, run_copy / "config.yaml")
    answer = noah("evaluate", str(run_copy))
    assert (answer.status, answer.err.count("\n")) == (2, 1), answer.err
    assert not Path("pwned").exists()


@pytest.mark.parametrize("group", ["recipe.optimizer", "recipe.schedule", "recipe.mixing"])
def test_a_target_among_the_training_settings_is_refused_too(run_copy: Path, group: str) -> None:
    from omegaconf import OmegaConf

    config = OmegaConf.load(run_copy / "config.yaml")
    OmegaConf.update(config, group, {"_target_": "os.system", "command": "touch pwned"}, force_add=True)
    OmegaConf.save(config, run_copy / "config.yaml")
    answer = call_noah("evaluate", str(run_copy))
    assert (answer.status, answer.err.count("\n")) == (2, 1), answer.err
    assert f"there is no setting '{group}._target_'" in answer.err
    assert not Path("pwned").exists()


def test_a_folder_of_runs_names_them(finished_run: FinishedRun) -> None:
    answer = call_noah("evaluate", str(finished_run.path.parent))
    assert answer.status == 2
    assert f"there are runs inside: {finished_run.path}\n" in answer.err
