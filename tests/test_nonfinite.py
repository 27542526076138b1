"""Losses and gradients that are not finite."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from conftest import TINY, Answer
from noah_lightning.callbacks.checkpoints import read_checkpoint
from noah_lightning.callbacks.failures import NonFiniteCheck
from noah_lightning.config.compose import compose_config
from noah_lightning.data import create_data
from noah_lightning.errors import RunFailed, RunFailedEverywhere
from noah_lightning.sweep import job
from noah_lightning.task import ClassificationTask, optimizer
from noah_lightning.train import make_task, train
from test_processes import in_process_group

Noah = Callable[..., Answer]
RUN = [*TINY, "head=gap", "data.train_images=96", "hydra.run.dir=run", "checkpoint.every_n_steps=1"]  # 2 × 3 steps


def spoil(monkeypatch: pytest.MonkeyPatch, bad: Callable[[int, int], bool], what: str = "loss") -> None:
    """The loss, or the gradient alone, of the batches (epoch, batch) that are ``bad`` becomes NaN."""
    real = ClassificationTask.training_step

    def step(self: ClassificationTask, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        if not bad(self.current_epoch, batch_idx):
            return real(self, batch, batch_idx)
        if what == "gradient":
            loss = real(self, batch, batch_idx)
            loss.register_hook(lambda gradient: gradient * math.nan)
            return loss
        return real(self, (batch[0] * math.nan, batch[1]), batch_idx)  # through the network: batch norm meets it too

    monkeypatch.setattr(ClassificationTask, "training_step", step)


def steps_saved() -> list[str]:
    return sorted(path.name for path in Path("run/checkpoints").glob("*.ckpt"))


def test_a_loss_that_is_not_finite_ends_the_run_and_its_images_are_noted(
    noah: Noah, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, lambda epoch, batch: (epoch, batch) == (1, 1))
    seen = []
    real = ClassificationTask.training_step  # spoiled

    def watch(self: ClassificationTask, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        seen.append(batch[1])
        return real(self, batch, batch_idx)

    monkeypatch.setattr(ClassificationTask, "training_step", watch)
    answer = noah("train", *RUN, "trainer.log_every_n_steps=100")
    assert (answer.status, answer.err.count("\n")) == (1, 1)
    assert answer.err.startswith("noah: epoch 2, batch 2: the loss is nan; its images are in nonfinite.json")
    assert "recipe.optimizer.lr" in answer.err
    assert steps_saved() == ["best.ckpt", "last.ckpt", "step-00000003.ckpt", "step-00000004.ckpt"]
    content = read_checkpoint(Path("run/checkpoints/last.ckpt"))
    assert content["global_step"] == 4  # the step before
    assert all(torch.isfinite(weight).all() for weight in content["state_dict"].values())
    assert answer.err.removeprefix("noah: ") in Path("run/train.log").read_text()
    assert not Path("run/results.json").exists()
    record = json.loads(Path("run/nonfinite.json").read_text())
    assert (record["epoch"], record["batch"]) == (2, 2)
    [process] = record["processes"]
    assert (process["process"], process["loss"]) == (0, "nan")
    config = compose_config(RUN[:-2])
    data = create_data(**config.data.arguments())
    data.setup("fit")
    labels = [data.train_dataset[image["number"]][1] for image in process["images"]]
    assert labels == seen[4].tolist()


def test_the_files_of_the_batch_are_noted(noah: Noah, jpeg_tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, lambda epoch, batch: True)
    tree = ["data=imagefolder", f"data.root={jpeg_tree}", "data.image_size=32", "data.num_workers=0"]
    tiny = ["model=timm", "model.name=test_resnet", "recipe.batch_size=4", "trainer.max_epochs=1"]
    assert noah("train", *tree, *tiny, "hydra.run.dir=run").status == 1
    assert not Path("run/checkpoints").exists()
    assert not Path("run/predictions.npz").exists()
    [process] = json.loads(Path("run/nonfinite.json").read_text())["processes"]
    files = [Path(image["file"]) for image in process["images"]]
    assert len(files) == 4
    assert all(file.is_file() and file.is_relative_to(jpeg_tree / "train") for file in files)


@pytest.mark.parametrize("at", [(1, 0), (1, 2)], ids=["in the middle", "at the end"])
def test_a_gradient_that_is_not_finite_is_found_before_anything_is_saved(
    noah: Noah, monkeypatch: pytest.MonkeyPatch, at: tuple[int, int]
) -> None:
    spoil(monkeypatch, lambda epoch, batch: (epoch, batch) == at, what="gradient")
    answer = noah("train", *RUN)
    assert answer.status == 1
    assert f"epoch 2, batch {at[1] + 1}: the gradient is not finite" in answer.err
    assert read_checkpoint(Path("run/checkpoints/last.ckpt"))["global_step"] == 3 + at[1]


def test_the_device_is_asked_no_more_often_than_it_is_waited_for(noah: Noah, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once at a line of the log, and once at an epoch's end and at each of its checkpoints."""
    looks = []
    real = NonFiniteCheck._first

    def look(self: NonFiniteCheck) -> list[float]:
        looks.append(len(self._unread))
        return real(self)

    monkeypatch.setattr(NonFiniteCheck, "_first", look)
    words = [*TINY, "head=gap", "data.train_images=320", "trainer.max_epochs=1", "trainer.log_every_n_steps=5"]
    assert noah("train", *words).status == 0
    assert looks == [5, 5, 0, 0, 0]  # 10 steps: two lines, the end, the best, the last


# --- several processes


def stop_and_skip(number: int, folder: Path) -> None:
    """One of two processes; only the second one meets NaN, in its second batch."""
    step = ClassificationTask.training_step

    def spoiled(self: ClassificationTask, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        bad = number == 1 and (self.current_epoch, batch_idx) == (0, 1)
        return step(self, (batch[0] * math.nan, batch[1]) if bad else batch, batch_idx)

    ClassificationTask.training_step = spoiled  # type: ignore[method-assign]  # of this process alone
    two = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.max_epochs=1"]
    for choice in ("stop", "skip"):
        config = compose_config([*RUN[:-2], "checkpoint.every_n_steps=1", *two, f"trainer.nonfinite={choice}"])
        run_dir = folder / choice if number == 0 else Path(os.devnull)
        try:
            train(config, run_dir)
            end = "finished"
        except RunFailed as failure:
            end = str(failure)
        (folder / f"{choice}-{number}").write_text(end)


def test_all_processes_agree_on_what_one_of_them_met(tmp_path: Path) -> None:
    in_process_group(2, stop_and_skip, tmp_path)
    first, second = ((tmp_path / f"stop-{number}").read_text() for number in range(2))
    assert first == second
    assert first.startswith("epoch 1, batch 2: the loss is nan")
    assert read_checkpoint(tmp_path / "stop/checkpoints/last.ckpt")["global_step"] == 1
    record = json.loads((tmp_path / "stop/nonfinite.json").read_text())
    assert [process["process"] for process in record["processes"]] == [1]
    assert len(record["processes"][0]["images"]) == 16  # of 32
    assert [(tmp_path / f"skip-{number}").read_text() for number in range(2)] == ["finished"] * 2
    weights = read_checkpoint(tmp_path / "skip/checkpoints/last.ckpt")["state_dict"]
    assert all(value.isfinite().all() for value in weights.values())
    assert (tmp_path / "skip/train.log").read_text().count("step skipped, 1 so far") == 1


# --- trainer.nonfinite=skip


@pytest.mark.filterwarnings("ignore:You defined a .validation_step. but have no")
def test_the_scaler_of_float16_leaves_its_steps_out_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: "Weights"
) -> None:
    """Its scale is halved, as without us, and the average of the weights takes no step either."""
    spoil(monkeypatch, lambda epoch, batch: batch == 1)
    config = compose_config([*TINY, "recipe.ema=0.5", "trainer.nonfinite=skip", "trainer.accelerator=cpu"])
    task = make_task(config, nn.Sequential(nn.Flatten(), nn.Linear(12, 10)), batch=4)
    data = DataLoader(TensorDataset(torch.randn(12, 3, 2, 2), torch.randint(10, (12,))), 4)
    scaler = torch.amp.GradScaler("cpu")
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        plugins=[MixedPrecision("16-mixed", "cpu", scaler)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(task, data)
    first, second, third = weights.after
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(second[name], third[name]) for name in first)
    assert scaler.get_scale() == 2**15


class Weights:
    """Those after each step, and how many parameters have momentum."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.after: list[dict[str, Tensor]] = []
        real = ClassificationTask.optimizer_step

        def step(task: ClassificationTask, *arguments: Any) -> None:
            real(task, *arguments)
            self.after.append({name: value.clone() for name, value in task.state_dict().items()})

        monkeypatch.setattr(ClassificationTask, "optimizer_step", step)


@pytest.fixture
def weights(monkeypatch: pytest.MonkeyPatch) -> Weights:
    return Weights(monkeypatch)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_step_that_is_skipped_leaves_no_trace(
    noah: Noah, monkeypatch: pytest.MonkeyPatch, weights: Weights, what: str
) -> None:
    """Neither in the weights nor in their average, nor in what batch norm has counted; accumulated or not."""
    spoil(monkeypatch, lambda epoch, batch: (epoch, batch) == (0, 3), what=what)
    words = ["trainer.nonfinite=skip", "recipe.ema=0.5", "recipe.mixing.mixup=0.2", "data.train_images=128"]
    accumulated = ["trainer.accumulate_grad_batches=2", "trainer.max_epochs=1"]  # 8 batches of 16, 4 steps
    answer = noah("train", *RUN, *words, *accumulated, "recipe.gradient_clip=1")
    assert answer.status == 0, answer.err
    assert answer.out.count("epoch 1, batch 4: the loss or gradient is not finite; step skipped, 1 so far") == 1
    first, second, third, fourth = weights.after
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(second[name], third[name]) for name in first)
    assert all(value.isfinite().all() for value in fourth.values() if value.is_floating_point())
    assert "train loss nan" not in answer.out
    assert "train loss inf" not in answer.out
    assert Path("run/results.json").exists()


def test_nothing_but_skipped_steps_ends_the_run(noah: Noah, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizer, "MAX_SKIPPED_IN_A_ROW", 4)
    spoil(monkeypatch, lambda epoch, batch: (epoch, batch) > (0, 0))
    answer = noah("train", *RUN, "trainer.nonfinite=skip", "trainer.max_epochs=3")
    assert (answer.status, answer.err.count("\n")) == (1, 1)
    assert "epoch 2, batch 3: no finite gradient for 4 steps in a row" in answer.err


@pytest.mark.parametrize(
    ("error", "raised"),
    [(RunFailedEverywhere("loss is nan"), None), (RunFailed("a process that loads images died"), RunFailed)],
)
def test_of_torchruns_processes_the_first_one_tells_what_all_met(
    monkeypatch: pytest.MonkeyPatch, error: RunFailed, raised: type[BaseException] | None
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(job, "train_here", fail)
    with pytest.raises(SystemExit) as caught:
        job._follow(OmegaConf.create(compose_config(["experiment=demo"]).model_dump()))
    if raised:
        assert isinstance(caught.value.__cause__, raised), "which the command line reports"
    else:
        assert (caught.value.code, caught.value.__cause__) == (1, None)


def test_another_word_is_refused(noah: Noah) -> None:
    answer = noah("train", *TINY, "trainer.nonfinite=ignore")
    assert (answer.status, answer.err) == (2, "noah: trainer.nonfinite='ignore' must be one of stop, skip\n")
