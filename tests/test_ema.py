"""The average of the weights against its formula, and that training does not notice it."""

import csv
import json
import os
import re
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

from conftest import TINY, Answer, FinishedRun, call_noah
from noah_lightning.config.schema import OptimizerSettings, ScheduleSettings
from noah_lightning.models.classifier import build_model, load_model
from noah_lightning.run_dir import RunDir
from noah_lightning.task import ClassificationTask
from test_task import BATCH, CLASSES, MetricRecord, count_with_numpy, loader, make_trainer, toy_data

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.. is deprecated"),
    pytest.mark.filterwarnings("ignore:You defined a .validation_step. but have no"),
    pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training"),
]

Noah = Callable[..., Answer]


def a_model() -> nn.Sequential:
    """With dropout, which draws in training mode, and batch norm, which has buffers."""
    torch.manual_seed(1)
    layers = nn.Flatten(), nn.Linear(12, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Dropout(0.3), nn.Linear(9, CLASSES)
    return nn.Sequential(*layers).double()


def a_task(model: nn.Module, ema: float | None) -> ClassificationTask:
    return ClassificationTask(
        model,
        OptimizerSettings(name="adamw", lr=0.05, weight_decay=0.1, decay="matrices"),
        ScheduleSettings(),
        ema=ema,
    )


class WeightsOfEachStep(pl.Callback):
    """The model's state after each step of the optimizer."""

    def __init__(self) -> None:
        self.states: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, task: pl.LightningModule, *_: Any) -> None:
        if trainer.global_step > len(self.states):
            self.states.append(deepcopy(task.model.state_dict()))


@pytest.mark.parametrize(("accumulate", "steps"), [(1, 12), (2, 6), (4, 4)])
@pytest.mark.parametrize("decay", [0.5, 0.9])
def test_the_average_moves_once_per_optimizer_step(decay: float, accumulate: int, steps: int) -> None:
    model = a_model()
    task, record = a_task(model, decay), WeightsOfEachStep()
    average = deepcopy(model.state_dict())  # it begins as a copy
    trainer = make_trainer(max_epochs=2, accumulate_grad_batches=accumulate, callbacks=[record])
    trainer.fit(task, loader(*toy_data()))

    assert len(record.states) == steps
    for state in record.states:
        for name, value in state.items():
            average[name] = decay * average[name] + (1 - decay) * value if value.is_floating_point() else value
    assert {"2.running_mean", "2.running_var", "2.num_batches_tracked"} < average.keys()
    for name, value in task.ema.module.state_dict().items():
        torch.testing.assert_close(value, average[name], rtol=0, atol=1e-13, msg=name)


def test_training_does_not_notice_the_average() -> None:
    """Not one bit: with dropout, clipping, a sanity check and a validation per epoch."""
    ends = []
    for decay in (None, 0.9):
        model = a_model()
        trainer = make_trainer(max_epochs=3, gradient_clip_val=0.5, num_sanity_val_steps=1)
        trainer.fit(a_task(model, decay), loader(*toy_data()), loader(*toy_data(10, seed=5)))
        ends.append((model.state_dict(), torch.get_rng_state()))
    (without, drawn_without), (average, drawn_average) = ends
    assert all(torch.equal(without[name], average[name]) for name in without)
    assert torch.equal(drawn_without, drawn_average)


def test_the_average_is_frozen_and_in_no_parameter_group() -> None:
    task = a_task(a_model(), 0.9)
    make_trainer().fit(task, loader(*toy_data()))
    average = list(task.ema.parameters())
    assert len(average) == len(list(task.model.parameters()))
    assert not any(parameter.requires_grad for parameter in average)
    assert all(parameter.grad is None for parameter in average)
    trained = {id(p) for group in task.configure_optimizers().param_groups for p in group["params"]}
    assert trained == {id(parameter) for parameter in task.model.parameters()}


def test_the_average_stays_in_evaluation_mode() -> None:
    task = a_task(a_model(), 0.9).train()
    assert task.model.training
    assert not any(module.training for module in task.ema.modules())


def test_validation_measures_both() -> None:
    task, metrics = a_task(a_model(), 0.9), MetricRecord()
    images, labels = toy_data(30, seed=5)
    trainer = make_trainer(max_epochs=2, num_sanity_val_steps=2, logger=metrics)
    trainer.fit(task, loader(*toy_data()), loader(images, labels))
    for model, val, prefix in (
        (task.model, task.validated, "val/"),
        (task.ema.module, task.ema_validated, "val/ema_"),
    ):
        with torch.no_grad():
            logits = model.eval()(images)
        correct, correct_top5 = count_with_numpy(logits[:, :, None, None], labels)
        assert (val.images, val.correct, val.correct_top5) == (30, correct, correct_top5)
        loss = -logits.log_softmax(1)[range(30), labels].mean().item()
        last = [metrics.of[f"{prefix}{name}"][-1] for name in ("top1", "top5", "loss")]
        assert last == pytest.approx([100 * correct / 30, 100 * correct_top5 / 30, loss], rel=1e-6)
        assert len(metrics.of[f"{prefix}top1"]) == 2
    assert task.validated.loss != task.ema_validated.loss


def test_without_an_average_there_is_nothing_of_it() -> None:
    task, metrics = a_task(a_model(), None), MetricRecord()
    make_trainer(logger=metrics).fit(task, loader(*toy_data()), loader(*toy_data(10, seed=5)))
    assert task.ema_validated is None
    assert not [name for name in (*task.state_dict(), *metrics.of) if "ema" in name]


def test_the_sanity_check_is_not_taken_for_a_validation() -> None:
    task = a_task(a_model(), 0.9)
    trainer = make_trainer(num_sanity_val_steps=2, check_val_every_n_epoch=2)
    trainer.fit(task, loader(*toy_data()), loader(*toy_data(3 * BATCH, seed=5)))
    assert task.ema_validated is None
    assert task.ema_score.images == 0


# --- a run with everything on


@pytest.fixture(scope="module")
def averaged_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FinishedRun]:
    """Mixup, CutMix, smoothing, clipping and an average of the weights; tests only read it."""
    folder = tmp_path_factory.mktemp("averaged")
    path, before = folder / "run", Path.cwd()
    everything = [
        "head=noah",
        "recipe.ema=0.7",
        "recipe.mixing.mixup=0.8",
        "recipe.mixing.cutmix=1.0",
        "recipe.label_smoothing=0.1",
        "recipe.gradient_clip=1.0",
        "trainer.max_epochs=4",
    ]
    os.chdir(folder)
    try:
        answer = call_noah("train", *TINY, *everything, f"hydra.run.dir={path}")
    finally:
        os.chdir(before)
    assert answer.status == 0, answer.err
    return FinishedRun(path, answer)


def validations(run: FinishedRun) -> list[dict[str, str]]:
    return [row for row in csv.DictReader((run.path / "metrics.csv").open()) if row["val/top1"]]


def of_checkpoint(run: FinishedRun, name: str) -> dict[str, Any]:
    return torch.load(run.path / "checkpoints" / f"{name}.ckpt", weights_only=True)


def test_metrics_and_log_tell_both_accuracies(averaged_run: FinishedRun) -> None:
    rows = validations(averaged_run)
    assert len(rows) == 4
    assert averaged_run.answer.err == ""
    lines = [line for line in averaged_run.answer.out.splitlines() if "train loss" in line]
    for row, line in zip(rows, lines, strict=True):
        val, ema = re.search(r"val top-1 (\S+) % .*  ema top-1 (\S+) %", line).groups()
        assert (float(val), float(ema)) == pytest.approx((float(row["val/top1"]), float(row["val/ema_top1"])))
    assert [row["val/loss"] for row in rows] != [row["val/ema_loss"] for row in rows]
    assert all(row["val/ema_top5"] for row in rows)


def test_results_hold_the_best_of_both(averaged_run: FinishedRun) -> None:
    results, rows = RunDir(averaged_run.path).results(), validations(averaged_run)
    for metric, epoch, correct in (
        ("val/top1", results.best_epoch, results.correct),
        ("val/ema_top1", results.ema_best_epoch, results.ema_correct),
    ):
        accuracies = [float(row[metric]) for row in rows]
        assert epoch == 1 + accuracies.index(max(accuracies))
        assert 100 * correct / 50 == pytest.approx(max(accuracies), abs=1e-4)
    top5 = float(rows[results.ema_best_epoch - 1]["val/ema_top5"])
    assert 100 * results.ema_correct_top5 / 50 == pytest.approx(top5, abs=1e-4)
    best, best_ema = averaged_run.answer.out.splitlines()[-2:]
    assert best.startswith(f"best     epoch {results.best_epoch}  val top-1 {results.top1:.3f} % ")
    assert best_ema.startswith(f"best ema epoch {results.ema_best_epoch}  val top-1 {2 * results.ema_correct:.3f} % ")


def test_a_run_without_an_average_says_so_in_its_results(finished_run: FinishedRun) -> None:
    results = json.loads((finished_run.path / "results.json").read_text())
    assert [results[key] for key in ("ema_best_epoch", "ema_correct", "ema_correct_top5")] == [None] * 3
    assert " ema " not in finished_run.answer.out


def test_each_checkpoint_holds_both_and_is_of_its_epoch(averaged_run: FinishedRun) -> None:
    results = RunDir(averaged_run.path).results()
    epochs = {"best": results.best_epoch, "best_ema": results.ema_best_epoch, "last": 4}
    names = build_model(RunDir(averaged_run.path).config()).state_dict().keys()
    for name, epoch in epochs.items():
        checkpoint = of_checkpoint(averaged_run, name)
        assert checkpoint["epoch"] + 1 == epoch
        assert checkpoint["state_dict"].keys() == {f"{p}.{name}" for p in ("model", "ema.module") for name in names}


def test_the_number_of_parameters_is_the_models(averaged_run: FinishedRun) -> None:
    parameters = sum(p.numel() for p in build_model(RunDir(averaged_run.path).config()).parameters())
    assert RunDir(averaged_run.path).results().parameters == parameters
    assert f"{parameters:,} parameters" in averaged_run.answer.out


@pytest.mark.parametrize(
    ("checkpoint", "ema", "name", "prefix"),
    [
        ("best", False, "best", "model."),
        ("best", True, "best_ema", "ema.module."),
        ("last", False, "last", "model."),
        ("last", True, "last", "ema.module."),
    ],
)
def test_a_loaded_model_has_the_weights_asked_for(
    averaged_run: FinishedRun, checkpoint: str, ema: bool, name: str, prefix: str
) -> None:
    state = of_checkpoint(averaged_run, name)["state_dict"]
    model = load_model(averaged_run.path, RunDir(averaged_run.path).config(), checkpoint, ema)
    assert not model.training
    assert all(torch.equal(value, state[f"{prefix}{key}"]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(("arguments", "line"), [(["--ema"], -1), ([], -2)])
def test_evaluation_repeats_the_log_to_the_last_digit(
    averaged_run: FinishedRun, arguments: list[str], line: int
) -> None:
    answer = call_noah("evaluate", str(averaged_run.path), *arguments)
    assert answer.status == 0, answer.err
    logged = averaged_run.answer.out.splitlines()[line]
    assert answer.out.split("  val ")[1].strip() == logged.split("  val ")[1].strip()
    assert answer.out.startswith(f"{averaged_run.path} ({'best, ema' if arguments else 'best'})  val ")


def test_the_last_average_can_be_evaluated(averaged_run: FinishedRun) -> None:
    answer = call_noah("evaluate", str(averaged_run.path), "--ema", "--checkpoint", "last")
    row = validations(averaged_run)[-1]
    top1, top5, loss = re.search(r"top-1 (\S+) % .*top-5 (\S+) %  loss (\S+)", answer.out).groups()
    assert top1 == f"{float(row['val/ema_top1']):.3f}"
    assert top5 == f"{float(row['val/ema_top5']):.3f}"
    assert loss == f"{float(row['val/ema_loss']):.4f}"


def test_a_run_with_an_average_has_the_weights_of_one_without(finished_run: FinishedRun, noah: Noah) -> None:
    """finished_run is the same command without it."""
    assert noah("train", *TINY, "head=noah", "recipe.ema=0.9", "hydra.run.dir=run").status == 0
    state = torch.load("run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    for name, value in of_checkpoint(finished_run, "last")["state_dict"].items():
        assert torch.equal(state[name], value), name


@pytest.mark.parametrize("precision", ["16-true", "bf16-true"])
def test_weights_that_cannot_hold_the_steps_of_an_average_are_refused(
    noah: Noah, tmp_path: Path, precision: str
) -> None:
    answer = noah("train", *TINY, "recipe.ema=0.9", f"trainer.precision={precision}")
    assert answer.status == 2
    assert answer.err.startswith("noah: recipe.ema ")
    assert answer.err.endswith(f"trainer.precision={precision} can hold; use {precision[:-4]}mixed\n")
    assert list(tmp_path.iterdir()) == []
