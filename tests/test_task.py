"""ClassificationTask under Lightning's Trainer against a plain PyTorch loop and against counting with NumPy."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers.logger import Logger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from conftest import TINY, Answer
from noah_lightning.callbacks.failures import NonFiniteCheck
from noah_lightning.callbacks.progress import EpochReport
from noah_lightning.config.compose import compose_config
from noah_lightning.config.schema import MixingSettings, OptimizerSettings, ScheduleSettings
from noah_lightning.data import create_data, datamodule
from noah_lightning.data.transforms import OnDevice
from noah_lightning.distributed.signals import StopRequest
from noah_lightning.task import ClassificationTask, learning_rate
from noah_lightning.task.metrics import AccuracyCounter
from noah_lightning.train import make_callbacks
from noah_lightning.train import make_trainer as make_run_trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.. is deprecated"),
    pytest.mark.filterwarnings("ignore:You defined a .validation_step. but have no"),
]

CLOCK = ("train_seconds", "train_images", "run_seconds", "epoch_seconds")  # in the state of EpochReport
CLASSES, IMAGES, BATCH = 7, 22, 4  # 6 batches an epoch, the last one of 2


class MetricRecord(Logger):
    """Keeps what Lightning would have written."""

    name, version = "record", 0

    def __init__(self) -> None:
        super().__init__()
        self.of: dict[str, list[float]] = {}

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        for key, value in metrics.items():
            self.of.setdefault(key, []).append(value)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...


class RateRecord(pl.Callback):
    """The rates that are in the optimizer's groups at each of its steps."""

    def __init__(self) -> None:
        self.rates: list[set[float]] = []

    def on_before_optimizer_step(self, trainer: pl.Trainer, task: pl.LightningModule, optimizer: Any) -> None:
        self.rates.append({group["lr"] for group in optimizer.param_groups})


def make_task(
    model: nn.Module,
    optimizer: OptimizerSettings = OptimizerSettings(name="sgd", lr=0.1),  # noqa: B008  (frozen)
    schedule: ScheduleSettings = ScheduleSettings(),  # noqa: B008
    label_smoothing: float = 0.0,
) -> ClassificationTask:
    return ClassificationTask(model, optimizer, schedule, label_smoothing)


def make_trainer(**arguments: Any) -> pl.Trainer:
    defaults = {"accelerator": "cpu", "logger": False, "max_epochs": 1, "log_every_n_steps": 1}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return pl.Trainer(**(defaults | quiet | arguments))


def loader(images: Tensor, labels: Tensor, batch_size: int = BATCH) -> DataLoader:
    return DataLoader(TensorDataset(images, labels), batch_size)


def toy_data(images: int = IMAGES, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(images, 3, 2, 2, dtype=torch.float64, generator=generator)
    return pixels, torch.randint(CLASSES, (images,), generator=generator)


def toy_model() -> nn.Sequential:
    torch.manual_seed(1)
    layers = nn.Flatten(), nn.Linear(12, 9, bias=False), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, CLASSES)
    return nn.Sequential(*layers).double()


def logits_as_images(images: int, classes: int = 12, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images that nn.Flatten turns into random logits, and labels: a model of which everything is known."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, classes, 1, 1, generator=generator)
    return logits, torch.randint(classes, (images,), generator=generator)


# --- training


def train_plainly(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    rate: Callable[[float], float],
    epochs: int,
    smoothing: float,
    accumulate: int,
) -> dict[str, list[float]]:
    """What Lightning and the task should amount to; returns the losses and accuracies per epoch."""
    images, labels = toy_data()
    starts = range(0, IMAGES, BATCH)
    record: dict[str, list[float]] = {"loss": [], "top1": []}
    for epoch in range(epochs):
        loss_sum = correct = 0.0
        for index, start in enumerate(starts):
            x, y = images[start : start + BATCH], labels[start : start + BATCH]
            log_probabilities = model(x).log_softmax(1)
            target = torch.full_like(log_probabilities, smoothing / CLASSES)
            target[range(len(y)), y] += 1 - smoothing
            loss = -(target * log_probabilities).sum(1).mean()
            (loss / accumulate).backward()
            loss_sum += loss.item() * len(y)
            correct += (log_probabilities.argmax(1) == y).sum().item()
            if (index + 1) % accumulate == 0 or index + 1 == len(starts):
                for group in optimizer.param_groups:
                    group["lr"] = rate(epoch + (index - index % accumulate) / len(starts))
                optimizer.step()
                optimizer.zero_grad()
        record["loss"].append(loss_sum / IMAGES)
        record["top1"].append(100 * correct / IMAGES)
    return record


SCHEDULES = {
    "constant": (ScheduleSettings(), lambda time: 0.05),
    "cosine per step": (
        ScheduleSettings(name="cosine", per="step", final_lr=0.01),
        lambda time: 0.01 + 0.04 * (1 + math.cos(math.pi * time / 3)) / 2,
    ),
    "step per epoch": (
        ScheduleSettings(name="step", per="epoch", milestones=[1, 2], gamma=0.5),
        lambda time: 0.05 * 0.5 ** math.floor(time),
    ),
    "warm-up per step": (
        ScheduleSettings(name="constant", per="step", warmup_epochs=2),
        lambda time: 0.05 * min(1, time / 2),
    ),
}
OPTIMIZERS: dict[str, tuple[OptimizerSettings, Callable[[nn.Module], torch.optim.Optimizer]]] = {
    "sgd": (
        OptimizerSettings(name="sgd", lr=0.05, weight_decay=0.01, decay="all", options={"momentum": 0.9}),
        lambda model: torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01),
    ),
    "adamw": (
        OptimizerSettings(name="adamw", lr=0.05, weight_decay=0.2, decay="matrices", options={"betas": [0.8, 0.9]}),
        lambda model: torch.optim.AdamW(
            [
                {"params": [p for p in model.parameters() if p.ndim == 2], "weight_decay": 0.2},
                {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
            ],
            lr=0.05,
            betas=(0.8, 0.9),
        ),
    ),
}


@pytest.mark.parametrize("accumulate", [1, 2, 4])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_equals_a_plain_loop(optimizer: str, schedule: str, smoothing: float, accumulate: int) -> None:
    (settings, plain_optimizer), (clock, rate) = OPTIMIZERS[optimizer], SCHEDULES[schedule]
    expected = toy_model()
    record = train_plainly(expected, plain_optimizer(expected), rate, 3, smoothing, accumulate)

    model, metrics = toy_model(), MetricRecord()
    trainer = make_trainer(max_epochs=3, accumulate_grad_batches=accumulate, logger=metrics)
    trainer.fit(make_task(model, settings, clock, smoothing), loader(*toy_data()))

    for name, weights in expected.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], weights, rtol=0, atol=1e-12, msg=name)
    assert metrics.of["train/loss"] == pytest.approx(record["loss"], rel=1e-6)  # summed and logged in float32
    assert metrics.of["train/top1"] == pytest.approx(record["top1"], rel=1e-6)


@pytest.mark.parametrize("accumulate", [1, 2, 4])  # in the last case the second step of an epoch has two passes
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_optimizer_step_has_the_rate_of_its_first_pass(schedule: str, accumulate: int) -> None:
    (settings, _), (clock, _) = OPTIMIZERS["adamw"], SCHEDULES[schedule]
    rates, metrics = RateRecord(), MetricRecord()
    trainer = make_trainer(max_epochs=3, callbacks=[rates], logger=metrics, accumulate_grad_batches=accumulate)
    trainer.fit(make_task(toy_model(), settings, clock), loader(*toy_data()))

    starts = range(0, 6, accumulate)
    expected = [learning_rate(epoch + batch / 6, 0.05, 3, clock) for epoch in range(3) for batch in starts]
    assert rates.rates == [{rate} for rate in expected]  # the same in both groups
    assert metrics.of["train/lr"] == pytest.approx(expected, rel=1e-6)


def test_a_shortened_epoch_is_the_whole_clock() -> None:
    """With limit_train_batches the cosine must still run to its end within the epochs."""
    clock, rates = ScheduleSettings(name="cosine", per="step"), RateRecord()
    trainer = make_trainer(max_epochs=2, limit_train_batches=2, callbacks=[rates])
    trainer.fit(make_task(toy_model(), schedule=clock), loader(*toy_data()))
    expected = [0.05 * (1 + math.cos(math.pi * time / 2)) for time in (0, 0.5, 1, 1.5)]
    assert [rate for group in rates.rates for rate in group] == pytest.approx(expected, rel=1e-12)


def test_the_loss_of_each_step_is_logged() -> None:
    metrics = MetricRecord()
    make_trainer(logger=metrics).fit(
        make_task(toy_model(), OptimizerSettings(name="sgd", lr=0.0)), loader(*toy_data())
    )
    images, labels = toy_data()
    model = toy_model()
    expected = [
        -model(x).log_softmax(1)[range(len(y)), y].mean().item()
        for x, y in zip(images.split(BATCH), labels.split(BATCH), strict=True)
    ]
    assert metrics.of["train/loss_step"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("mixing", [MixingSettings(), MixingSettings(mixup=0.8), MixingSettings(cutmix=1.0)])
def test_a_training_step_never_waits_for_the_device(mixing: MixingSettings) -> None:
    """A meta tensor has no value: .item(), .cpu(), float() and bool() of one raise."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, CLASSES))
    settings = OptimizerSettings(name="sgd", lr=0.1), ScheduleSettings(), 0.1, mixing, CLASSES, 0.9
    task = ClassificationTask(model, *settings).to("meta")
    images, labels = torch.empty(4, 3, 2, 2, device="meta"), torch.empty(4, dtype=torch.long, device="meta")
    loss = task.training_step((images, labels), 0)
    loss.backward()
    task.ema.update(task.model)
    assert loss.is_meta
    assert task.train_score.correct.is_meta
    assert task.loss.is_meta, "what is logged every few steps is fetched only then"
    with pytest.raises(RuntimeError, match="meta"):  # the test's own premise
        task.train_score.compute()


@pytest.mark.parametrize(("accumulate", "steps"), [(1, [2, 5]), (2, [2]), (4, [])])
def test_every_few_steps_and_no_other_are_written(accumulate: int, steps: list[int]) -> None:
    """To fetch a value is to wait for the device."""
    written: list[int | None] = []

    class Steps(MetricRecord):
        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            if "train/lr" in metrics:
                assert "train/loss_step" in metrics
                written.append(step)

    task = ClassificationTask(toy_model(), OptimizerSettings(name="sgd", lr=0.1), ScheduleSettings())
    trainer = make_trainer(log_every_n_steps=3, accumulate_grad_batches=accumulate, logger=Steps())
    trainer.fit(task, loader(*toy_data()))
    assert written == steps


@pytest.mark.parametrize(("accumulate", "held"), [(1, []), (2, [0, 2, 4])])
def test_gradients_take_no_memory_between_steps(accumulate: int, held: list[int]) -> None:
    """Only passes that a step has yet to follow leave theirs."""
    batches: list[int] = []

    class Gradients(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, task: pl.LightningModule, *arguments: Any) -> None:
            if any(parameter.grad is not None for parameter in task.parameters()):
                batches.append(arguments[2])

    trainer = make_trainer(accumulate_grad_batches=accumulate, callbacks=[Gradients()])
    trainer.fit(make_task(toy_model()), loader(*toy_data()))
    assert batches == held


def test_channels_last_is_the_format_of_weights_average_and_images() -> None:
    formats: list[tuple[bool, bool]] = []

    def note(module: nn.Module, inputs: tuple[Tensor]) -> None:
        is_last = [t.is_contiguous(memory_format=torch.channels_last) for t in (inputs[0], module.weight)]
        formats.append((is_last[0], is_last[1]))

    torch.manual_seed(1)
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES)
    model = nn.Sequential(*layers).double()
    model[0].register_forward_pre_hook(note)
    settings = OptimizerSettings(name="sgd", lr=0.1), ScheduleSettings(), 0.0, MixingSettings(mixup=0.8), CLASSES, 0.9
    task = ClassificationTask(model, *settings, channels_last=True)
    pixels, labels = torch.randn(4, 3, 6, 6, dtype=torch.float64), torch.arange(4)
    make_trainer(num_sanity_val_steps=0).fit(task, loader(pixels, labels), loader(pixels, labels))
    assert formats == [(True, True)] * 3  # in training, in validation, and in that of the average


# --- validation


def validate(images: Tensor, labels: Tensor, batch_size: int) -> tuple[ClassificationTask, dict[str, float]]:
    task = make_task(nn.Flatten())
    (metrics,) = make_trainer().validate(task, loader(images, labels, batch_size), verbose=False)
    return task, metrics


def count_with_numpy(images: Tensor, labels: Tensor) -> tuple[int, int]:
    """Number of labels ranked first, and among the first five."""
    logits, label = images.flatten(1).numpy(), labels.numpy()
    own = logits[np.arange(len(label)), label]
    rank = (logits > own[:, None]).sum(axis=1)
    return int((rank == 0).sum()), int((rank < 5).sum())


@pytest.mark.parametrize("batch_size", [1, 7, 64, 2000])
def test_validation_counts_every_image_exactly_once(batch_size: int) -> None:
    images, labels = logits_as_images(1003)
    correct, correct_top5 = count_with_numpy(images, labels)
    task, metrics = validate(images, labels, batch_size)
    val = task.validated
    assert (val.images, val.correct, val.correct_top5) == (1003, correct, correct_top5)
    assert all(type(count) is int for count in (val.images, val.correct, val.correct_top5))
    assert (val.top1, val.top5) == (100 * correct / 1003, 100 * correct_top5 / 1003)
    assert metrics["val/images"] == 1003
    assert metrics["val/top1"] == pytest.approx(val.top1, rel=1e-6)  # logged in float32
    assert metrics["val/top5"] == pytest.approx(val.top5, rel=1e-6)


@pytest.mark.parametrize("batch_size", [1, 7, 64, 2000])
def test_validation_loss_is_the_mean_over_images(batch_size: int) -> None:
    images, labels = logits_as_images(1003)
    images[960:] *= 30  # what a mean over batches of 64 would overrate
    logits = images.flatten(1).double().numpy()
    own = logits[np.arange(1003), labels.numpy()]
    expected = float(np.mean(np.log(np.exp(logits).sum(axis=1)) - own))
    task, metrics = validate(images, labels, batch_size)
    assert task.validated.loss == pytest.approx(expected, rel=1e-5)  # a float32 sum of up to 1003 batches
    assert metrics["val/loss"] == pytest.approx(expected, rel=1e-5)


def test_labels_shifted_by_one_are_counted_as_wrong() -> None:
    images, _ = logits_as_images(50)
    guesses = images.flatten(1).argmax(1)
    assert validate(images, guesses, 7)[0].validated.correct == 50
    assert validate(images, (guesses + 1) % 12, 7)[0].validated.correct == 0


@pytest.mark.parametrize("classes", [1, 2, 4, 5])
def test_with_at_most_five_classes_top5_is_100_percent(classes: int) -> None:
    task, metrics = validate(*logits_as_images(23, classes), batch_size=7)
    assert task.validated.correct_top5 == 23
    assert metrics["val/top5"] == 100
    assert "top-5" not in str(task.validated)
    best = {"best": [1, tuple(task.validated)], "best_ema": [0, None]}
    resumed = EpochReport()
    resumed.load_state_dict({**best, **dict.fromkeys(CLOCK, 0.0)})
    assert str(resumed.best) == f"epoch 1  val {task.validated}"


def test_with_six_classes_top5_is_reported() -> None:
    task, _ = validate(*logits_as_images(23, 6), batch_size=7)
    assert f"  top-5 {task.validated.top5:.3f} %  loss" in str(task.validated)


def test_validation_ignores_label_smoothing() -> None:
    images, labels = logits_as_images(30)
    plain = make_task(nn.Flatten())
    smoothed = make_task(nn.Flatten(), label_smoothing=0.3)
    for task in (plain, smoothed):
        make_trainer().validate(task, loader(images, labels), verbose=False)
    assert plain.validated == smoothed.validated


def test_the_model_is_validated_in_evaluation_mode_and_trained_in_training_mode() -> None:
    modes: list[tuple[bool, bool]] = []
    model = toy_model()
    model.register_forward_hook(lambda module, *_: modes.append((module.training, torch.is_grad_enabled())))
    data = loader(*toy_data())
    make_trainer(num_sanity_val_steps=0, limit_train_batches=2, limit_val_batches=1, max_epochs=2).fit(
        make_task(model), data, data
    )
    assert modes == [(True, True), (True, True), (False, False)] * 2


def test_each_epoch_is_counted_from_zero() -> None:
    metrics = MetricRecord()
    counts: list[int] = []

    class TrainImages(pl.Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, task: ClassificationTask) -> None:
            counts.append(task.train_score.compute().images)

    still = make_task(toy_model(), OptimizerSettings(name="sgd", lr=0.0))
    trainer = make_trainer(max_epochs=3, logger=metrics, callbacks=[TrainImages()])
    trainer.fit(still, loader(*toy_data()), loader(*toy_data(10, seed=5)))
    assert metrics.of["val/images"] == [10, 10, 10]
    assert counts == [IMAGES, IMAGES, IMAGES]
    assert len(set(metrics.of["train/top1"])) == 1
    assert still.validated.images == 10


def test_the_sanity_check_leaves_no_trace() -> None:
    metrics = MetricRecord()
    task = make_task(toy_model())
    trainer = make_trainer(num_sanity_val_steps=2, logger=metrics)
    trainer.fit(task, loader(*toy_data()), loader(*toy_data(10, seed=5)))
    assert metrics.of["val/images"] == [10]
    assert task.validated.images == 10


def test_the_sanity_check_is_not_taken_for_a_validation() -> None:
    task = make_task(toy_model())
    trainer = make_trainer(num_sanity_val_steps=2, check_val_every_n_epoch=2)
    trainer.fit(task, loader(*toy_data()), loader(*toy_data(10, seed=5)))
    assert task.validated is None


# --- order of Lightning's hooks


def test_a_training_step_is_seeded_before_anything_that_draws(
    noah: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In Lightning's order of hooks the data module's comes first, then erasing, then the model's step."""
    calls: list[Any] = []

    def record(owner: Any, name: str, note: Callable[..., Any]) -> None:
        real = getattr(owner, name)

        def recorded(*arguments: Any) -> Any:
            calls.append(note(*arguments))
            return real(*arguments)

        monkeypatch.setattr(owner, name, recorded)

    record(datamodule, "seed_training_step", lambda *arguments: arguments)
    record(OnDevice, "erase", lambda *_: "erase")
    record(ClassificationTask, "on_train_batch_start", lambda *_: "start")
    record(ClassificationTask, "training_step", lambda *_: "step")
    words = ["head=gap", "seed=3", "recipe.augment.erasing=0.5", "trainer.num_sanity_val_steps=1"]
    answer = noah("train", *TINY, *words)
    assert answer.status == 0, answer.err
    batches = [(3, 0, epoch, batch) for epoch in range(2) for batch in range(3)]  # seed, rank, epoch, batch
    assert calls == [call for batch in batches for call in (batch, "erase", "start", "step")]


def test_the_check_for_nonfinite_values_precedes_all_callbacks_that_save(tmp_path: Path) -> None:
    config = compose_config(TINY)
    data = create_data(**config.data.arguments())
    callbacks = make_callbacks(config, tmp_path, [], EpochReport(), data, StopRequest())
    trainer = make_run_trainer(config, tmp_path, logger=False, callbacks=callbacks)
    assert isinstance(trainer.callbacks[0], NonFiniteCheck)  # Lightning may reorder them


# --- epoch report


def test_checkpoints_hold_the_state_of_the_epoch_report_under_a_fixed_key() -> None:
    class Renamed(EpochReport):
        pass

    assert Renamed().state_key == "EpochReport"


def test_the_speed_of_an_epoch_after_a_resume_is_its_own() -> None:
    report, metrics = EpochReport(), MetricRecord()
    slow = {"train_seconds": 1e6, "train_images": 10, "run_seconds": 1e6, "epoch_seconds": 0.0}
    report.load_state_dict({**slow, "best": [0, None], "best_ema": [0, None]})
    make_trainer(logger=metrics, callbacks=[report]).fit(make_task(toy_model()), loader(*toy_data()))
    [speed] = metrics.of["train/images_per_second"]
    seconds, images = report.train_seconds - 1e6 - report.startup_seconds, IMAGES - report.startup_images
    assert speed == pytest.approx(images / seconds, rel=1e-3)
    assert report.train_images == 10 + IMAGES


class SlowStart(nn.Module):
    """Waits in the first batch, as workers and compilation do."""

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            time.sleep(self.__dict__.pop("wait", 0.01))
        return images

    def __init__(self) -> None:
        super().__init__()
        self.wait = 1.0


@pytest.mark.parametrize("epochs", [1, 3])
def test_images_per_second_leave_out_the_first_batch(epochs: int) -> None:
    """The first batch takes a second, and each later one 0.01 s at least."""
    report, metrics = EpochReport(), MetricRecord()
    model = nn.Sequential(SlowStart(), toy_model())
    trainer = make_trainer(logger=metrics, callbacks=[report], max_epochs=epochs)
    trainer.fit(make_task(model), loader(*toy_data()))
    speeds = metrics.of["train/images_per_second"]
    assert len(speeds) == epochs
    assert all(IMAGES < speed < BATCH / 0.01 for speed in [*speeds, report.images_per_second])
    assert report.train_seconds > 1  # all the time
    assert report.startup_images == pytest.approx(IMAGES / 6)
    resumed = EpochReport()
    resumed.load_state_dict(report.state_dict())
    assert resumed.images_per_second == report.images_per_second


def test_an_only_batch_counts() -> None:
    report, metrics = EpochReport(), MetricRecord()
    trainer = make_trainer(logger=metrics, callbacks=[report], limit_train_batches=1)
    trainer.fit(make_task(toy_model()), loader(*toy_data()))
    assert metrics.of["train/images_per_second"] == [BATCH / report.train_seconds] == [report.images_per_second]


# --- counter and settings


def test_the_counter_divides_the_sum_of_the_losses_by_the_images() -> None:
    counter = AccuracyCounter()
    counter.update(torch.eye(3), torch.arange(3), torch.tensor(3.0))
    counter.update(torch.eye(3)[:1], torch.tensor([2]), torch.tensor(5.0))
    assert counter.compute()[:4] == (4, 3, 4, 2.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_counter_takes_logits_of_any_precision(dtype: torch.dtype) -> None:
    """A loss of 60,000 and a further one would overflow a sum in half precision."""
    counter = AccuracyCounter()
    logits = torch.tensor([[0, 1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1, 0]], dtype=dtype)
    for _ in range(3):
        counter.update(logits, torch.tensor([6, 5]), torch.tensor(49152.0, dtype=dtype))
    assert counter.compute()[:4] == (6, 3, 3, 24576.0)


def test_counts_stay_integers_when_the_model_is_halved() -> None:
    """Counted in float16, 2,049 images would be 2,048."""
    task = make_task(toy_model()).half()
    counter = task.val_score
    assert [counter.images.dtype, counter.correct.dtype, counter.correct_top5.dtype] == [torch.int64] * 3
    for _ in range(2049):
        counter.update(torch.eye(7)[:1].half(), torch.tensor([0]), torch.tensor(1.0).half())
    assert counter.compute()[:4] == (2049, 2049, 2049, 1.0)


def test_an_untouched_counter_is_all_zero() -> None:
    counter = AccuracyCounter()
    counter.update(torch.eye(3), torch.arange(3), torch.tensor(1.0))
    counter.reset()
    assert (counter.images, counter.correct, counter.correct_top5, counter.loss_sum) == (0, 0, 0, 0)


def test_a_checkpoint_holds_the_models_weights_and_nothing_else() -> None:
    model = toy_model()
    task = make_task(model)
    task.val_score.update(torch.eye(CLASSES), torch.arange(CLASSES), torch.tensor(1.0))
    assert task.state_dict().keys() == {f"model.{name}" for name in model.state_dict()}


def test_the_task_is_its_model() -> None:
    model, (images, _) = toy_model().eval(), toy_data()
    assert torch.equal(make_task(model).eval()(images), model(images))
