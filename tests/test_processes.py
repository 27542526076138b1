"""Runs in several processes: what each process does, and that the result equals that of one process.

Some runs are started as a user would, each in a Python of its own. The others fork this process, which saves the
imports.
"""

import gc
import json
import math
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score
from torch import Tensor, nn

from commands import Command, save_slowly
from conftest import TINY, Answer, call_noah
from faults import Process
from noah_lightning.cli import main
from noah_lightning.config.choices import DataSettings
from noah_lightning.config.compose import compose_config
from noah_lightning.config.schema import (
    OptimizerSettings,
    ScheduleSettings,
    TrainerSettings,
    batch_per_process,
    processes_per_node,
)
from noah_lightning.data import create_data
from noah_lightning.data.datamodule import ImageDataModule, Split
from noah_lightning.data.samplers import EpochRepeat, EpochShuffle
from noah_lightning.distributed import launcher
from noah_lightning.distributed.collectives import gather_floats, max_over_ranks
from noah_lightning.distributed.environment import processes_started, rank
from noah_lightning.distributed.launcher import _work, run_in_processes
from noah_lightning.distributed.signals import Stopped
from noah_lightning.errors import ConfigError, RunFailed
from noah_lightning.run_dir import RunDir
from noah_lightning.task import ClassificationTask, make_objective
from noah_lightning.task.metrics import AccuracyCounter, Predictions
from noah_lightning.train import make_trainer, train

ROOT = Path(__file__).parents[1]
FILES = [
    "checkpoints",
    "checkpoints/best.ckpt",
    "checkpoints/last.ckpt",
    "config.yaml",
    "metrics.csv",
    "predictions.npz",
    "results.json",
    "train.log",
]
TWO = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]


# --- starting processes


@dataclass
class Launched(Answer):
    """Result of a command that ran in its own process, with the processes it left behind."""

    folder: Path
    behind: list[str]


def launch(folder: Path, *argv: str, torchrun: bool = False, **environment: str) -> Launched:
    """``python train.py <argv>`` in ``folder``, which is created."""
    folder.mkdir()
    mark = uuid.uuid4().hex
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node=2"] if torchrun else []
    command = [sys.executable, *launcher, str(ROOT / "train.py"), *argv]
    known = {**os.environ, "OMP_NUM_THREADS": "1", "NOAH_TEST": mark, **environment}
    done = subprocess.run(command, cwd=folder, env=known, capture_output=True, text=True, timeout=300)
    return Launched(done.returncode, done.stdout, done.stderr, folder, behind(mark))


def behind(mark: str) -> list[str]:
    """Processes that have ``mark`` in their environment and do not end within seconds."""
    for _ in range(50):
        marked = [process.name for process in Path("/proc").glob("[0-9]*") if mark in environment_of(process)]
        if not marked:
            break
        time.sleep(0.1)
    return marked


def in_session(leader: int) -> list[str]:
    """Processes of the session of a process that has ended, which do not end within seconds themselves."""
    for _ in range(50):
        found = [path.name for path in Path("/proc").glob("[0-9]*") if session_of(path) == str(leader)]
        if not found:
            break
        time.sleep(0.1)
    return found


def session_of(process: Path) -> str:
    """The fields of stat after the name, which may hold spaces: state, parent, group, session."""
    _, _, fields = file_of(process / "stat").rpartition(") ")
    return (fields.split() + [""] * 4)[3]


def environment_of(process: Path) -> str:
    return file_of(process / "environ")


def file_of(process: Path) -> str:
    """A file in a process's folder of /proc."""
    try:
        return process.read_text(errors="replace")
    except OSError:  # it has ended, or is not ours
        return ""


def run_dir_in(folder: Path) -> Path:
    """The only run directory there."""
    [run_dir] = folder.glob("runs/*/*")
    return run_dir


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def in_process_group(count: int, work: Callable[..., None], *arguments: Any) -> None:
    """``work(rank, *arguments)`` in ``count`` processes such as torchrun starts, forked from this one."""
    gc.collect()  # a forked process would crash when it deletes what an earlier launch left in reference cycles
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    torch.multiprocessing.start_processes(_member, (count, port, work, arguments), count, start_method="fork")


def _member(number: int, count: int, port: str, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    torch.cuda.is_available = lambda: False  # the GPU may not be used after a fork
    numbers = {"RANK": number, "LOCAL_RANK": number, "GROUP_RANK": 0, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    os.environ.update({name: str(value) for name, value in numbers.items()})
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=port, TORCHELASTIC_RUN_ID="test")
    work(number, *arguments)


# --- how the batch is split


def trainer_settings(devices: Any, nodes: int = 1, passes: int = 1, accelerator: Any = "cpu") -> TrainerSettings:
    return TrainerSettings(
        devices=devices, num_nodes=nodes, accumulate_grad_batches=passes, accelerator=accelerator, max_epochs=1
    )


@pytest.mark.parametrize(
    ("devices", "nodes", "passes", "images"),
    [
        (1, 1, 1, 48),
        (2, 1, 1, 24),
        ([0, 3], 1, 1, 24),
        (1, 1, 4, 12),
        (2, 3, 4, 2),
        (48, 1, 1, 1),
        ("auto", 2, 1, 24),
    ],
)
def test_all_passes_of_all_processes_make_one_batch(devices: object, nodes: int, passes: int, images: int) -> None:
    assert batch_per_process(48, trainer_settings(devices, nodes, passes)) == images


@pytest.mark.parametrize(
    ("batch", "trainer", "message"),
    [
        (64, trainer_settings(3), "recipe.batch_size=64 cannot be divided among 3 processes; use 63 or 66"),
        (2, trainer_settings(3), "recipe.batch_size=2 cannot be divided among 3 processes; use 3"),
        (64, trainer_settings(3, nodes=2), "recipe.batch_size=64 cannot be divided among 6 processes; use 60 or 66"),
        (
            64,
            trainer_settings(3, passes=2),
            "recipe.batch_size=64 cannot be divided among 3 processes × 2 accumulated passes; use 60 or 66",
        ),
        (
            64,
            trainer_settings(1, passes=3),
            "recipe.batch_size=64 cannot be divided among 3 accumulated passes; use 63 or 66",
        ),
    ],
)
def test_what_cannot_be_split_is_one_line(batch: Any, trainer: TrainerSettings, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        batch_per_process(batch, trainer)
    assert str(caught.value) == message


def test_the_configuration_splits_the_recipes_batch() -> None:
    config = compose_config(["experiment=demo", *TWO, "trainer.accumulate_grad_batches=4"])
    assert (config.recipe.batch_size, config.data.batch_size) == (64, 8)


@pytest.mark.parametrize(("devices", "count"), [(1, 1), (8, 8), ([2], 1), ([0, 1, 5], 3)])
def test_devices_say_how_many_processes(devices: object, count: int) -> None:
    assert processes_per_node(trainer_settings(devices)) == count


@pytest.mark.parametrize("devices", ["auto", -1])
@pytest.mark.parametrize(
    ("accelerator", "gpus", "count"), [("cpu", 3, 1), ("auto", 3, 3), ("gpu", 3, 3), ("auto", 0, 1)]
)
def test_auto_is_all_gpus_or_one_process(
    monkeypatch: pytest.MonkeyPatch, devices: object, accelerator: str, gpus: int, count: int
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert processes_per_node(trainer_settings(devices, accelerator=accelerator)) == count


def test_auto_is_what_torchrun_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert processes_per_node(trainer_settings("auto", accelerator="auto")) == 4


@pytest.mark.parametrize(
    ("environment", "number"), [({}, 0), ({"RANK": "3"}, 3), ({"SLURM_PROCID": "2"}, 2)], ids=str
)
def test_rank_is_read_from_the_launcher(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], number: int
) -> None:
    for name in ("RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert rank() == number


# --- which images each process sees


def shares(sampler: Callable[..., Any], processes: int) -> list[list[int]]:
    return [list(sampler(rank=number, world_size=processes)) for number in range(processes)]


def interleaved(parts: list[list[int]]) -> list[int]:
    """The first of each, the second of each, ...; so batches of one step stay together."""
    return list(chain.from_iterable(zip(*parts, strict=True)))


@pytest.mark.parametrize("processes", [2, 3, 8])
def test_batches_of_one_step_are_the_batch_of_one_process(processes: int) -> None:
    alone = list(EpochShuffle(48, seed=5, epoch=2))
    parts = shares(lambda **who: EpochShuffle(48, seed=5, epoch=2, **who), processes)
    each = 24 // processes
    for step in range(2):
        together = [index for part in parts for index in part[step * each : (step + 1) * each]]
        assert sorted(together) == sorted(alone[step * 24 : (step + 1) * 24])
    assert interleaved(parts) == alone


@pytest.mark.parametrize(("length", "processes"), [(10, 3), (7, 2), (2, 5), (1, 3)])
def test_the_first_images_fill_up(length: int, processes: int) -> None:
    alone = list(EpochShuffle(length, seed=1))
    parts = shares(lambda **who: EpochShuffle(length, seed=1, **who), processes)
    assert {len(part) for part in parts} == {-(-length // processes)}
    together = interleaved(parts)
    assert together == (alone * processes)[: len(together)]


def test_the_share_has_the_length_it_says() -> None:
    sampler = EpochShuffle(10, seed=1, rank=2, world_size=3)
    assert len(sampler) == len(list(sampler)) == 4


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("length", [48, 600])
def test_repeats_are_shared_in_the_order_of_one_process(length: int, processes: int) -> None:
    alone = list(EpochRepeat(length, seed=5, repeats=3, epoch=1))
    parts = shares(lambda **who: EpochRepeat(length, seed=5, repeats=3, epoch=1, **who), processes)
    together = interleaved(parts)
    assert together == alone[: len(together)]
    assert len(alone) - len(together) < processes


def test_three_repeats_in_three_processes_are_one_in_each() -> None:
    first, second, third = shares(lambda **who: EpochRepeat(48, seed=0, repeats=3, **who), 3)
    assert first == second == third


class Stripes:
    """Images of noise, each always the same, with labels in turn."""

    def __init__(self, length: int) -> None:
        self.classes = list("abcde")
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randint(256, (length, 3, 4, 4), generator=generator, dtype=torch.uint8)
        self.labels = torch.arange(length) % len(self.classes)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])


class StripesModule(ImageDataModule):
    length = 1003

    def build(self, split: Split) -> Stripes:
        return Stripes(self.length)


def stripes(batch_size: int, length: int = 1003) -> StripesModule:
    data = StripesModule(
        DataSettings(
            name="stripes",
            num_classes=5,
            mean=[0.5] * 3,
            std=[0.25] * 3,
            image_size=4,
            batch_size=batch_size,
            num_workers=0,
        )
    )
    data.length = length
    return data


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
@pytest.mark.parametrize("length", [1, 2, 8, 11])
def test_validation_shares_have_equal_batches_and_each_image_once(length: int, processes: int) -> None:
    batches, images = [], []
    for number in range(processes):
        data = stripes(batch_size=2, length=length)
        data.setup("validate")
        data.trainer = SimpleNamespace(global_rank=number, world_size=processes)  # type: ignore[assignment]
        own = list(data.val_dataloader())
        batches.append([len(labels) for _, labels in own])
        images += [image for some, labels in own for image in some[labels >= 0]]
    assert all(sizes == batches[0] for sizes in batches)
    seen = sorted(image.flatten().tolist() for image in images)
    assert seen == sorted(image.flatten().tolist() for image in Stripes(length).images)


# --- counts that leave out padding


def test_padding_counts_neither_as_image_nor_as_hit() -> None:
    logits, labels = torch.eye(7), torch.tensor([0, 1, 0, 6, 4, 5, 1])  # two of seven are wrong
    plain, padded = AccuracyCounter(), AccuracyCounter()
    plain.update(logits, labels, torch.tensor(3.5))
    padded.update(torch.cat([logits, torch.eye(7)[:3]]), F.pad(labels, (0, 3), value=-1), torch.tensor(3.5))
    assert padded.compute() == plain.compute()
    assert padded.compute()[:2] == (7, 4)


def test_a_batch_of_padding_alone_counts_nothing() -> None:
    counter = AccuracyCounter()
    counter.update(torch.eye(3), torch.full((3,), -1), torch.tensor(0.0))
    assert counter.compute()[:4] == (0, 0, 0, 0.0)


def test_predictions_keep_the_order_and_drop_padding() -> None:
    predictions = Predictions()
    predictions.update(torch.eye(5)[[3, 0]], torch.tensor([3, 1]))
    predictions.update(torch.eye(5)[[4, 2]], torch.tensor([4, -1]))
    labels, guesses = predictions.compute()
    assert labels.tolist() == [3, 1, 4]
    assert guesses.tolist() == [3, 0, 4]


def test_predictions_are_empty_after_a_reset() -> None:
    predictions = Predictions()
    predictions.update(torch.eye(5), torch.arange(5))
    predictions.reset()
    predictions.update(torch.eye(5)[:2], torch.tensor([2, 3]))
    assert [values.tolist() for values in predictions.compute()] == [[2, 3], [0, 1]]


@pytest.mark.parametrize(("number", "method"), [(signal.SIGTERM, "fork"), (signal.SIGINT, "spawn")])
def test_processes_have_unlimited_time_to_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, method: str
) -> None:
    """torch's launcher would kill them half a minute after a signal; here, after a second.

    Their DataLoader workers are started by the system's default method: spawned ones would import everything again,
    which takes a minute for eight workers.
    """
    gc.collect()  # as above
    monkeypatch.setattr(launcher, "START_METHOD", method)
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "1")

    def strike() -> None:
        while len(list(tmp_path.glob("ready-*"))) < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    Thread(target=strike, daemon=True).start()
    with pytest.raises(Stopped) as stopped:
        run_in_processes(2, save_slowly, tmp_path)
    assert stopped.value.signal == number
    assert sorted(path.name for path in tmp_path.glob("saved-*")) == ["saved-0", "saved-1"]
    assert signal.getsignal(number) == before
    workers = {path.read_text() for path in tmp_path.glob("ready-*")}
    assert workers == {multiprocessing.get_all_start_methods()[0]}


# --- the same validation in any number of processes


def classifier() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 5))


def validate(number: int, folder: Path, processes: int) -> None:
    """Validate with several batch sizes; what each process knows afterwards goes to ``folder``."""
    words = ["trainer=ddp", "trainer.accelerator=cpu", f"trainer.devices={processes}", "recipe.batch_size=60"]
    config = compose_config(["experiment=demo", *words])
    for batch_size in (1, 7, 64):
        task = ClassificationTask(classifier(), OptimizerSettings(name="sgd", lr=0.1), ScheduleSettings(), ema=0.5)
        trainer = make_trainer(config, folder, logger=False, enable_checkpointing=False)
        trainer.validate(task, datamodule=stripes(batch_size), verbose=False)
        seen = [list(task.validated), list(task.ema_validated), *task.predicted]
        torch.save(seen, folder / f"{batch_size}-of-{number}.pt")


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_validation_is_exact_for_any_number_of_processes_and_any_batch(tmp_path: Path, processes: int) -> None:
    in_process_group(processes, validate, tmp_path, processes)
    images = Stripes(1003)
    logits = classifier()((images.images / 255 - 0.5) / 0.25)  # all at once
    guesses, loss = logits.argmax(1), F.cross_entropy(logits, images.labels).item()
    hits = [int((guesses == images.labels).sum()), 1003]  # of five classes, all are among the first five
    saved = sorted(tmp_path.glob("*.pt"))
    assert len(saved) == 3 * processes
    for path in saved:
        val, ema, seen_labels, seen_guesses = torch.load(path)
        assert val == [1003, *hits, pytest.approx(loss, rel=1e-5), 5]
        assert ema == val
        assert torch.equal(seen_labels, images.labels)
        assert torch.equal(seen_guesses, guesses)


class Sets(Stripes):
    """The same images with several labels each, or none."""

    def __init__(self, length: int) -> None:
        super().__init__(length)
        self.sets = (torch.rand(length, 5, generator=torch.Generator().manual_seed(1)) < 0.3).float()

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return self.images[index], self.sets[index]


class SetsModule(StripesModule):
    multilabel = True

    def build(self, split: Split) -> Sets:
        return Sets(self.length)


def validate_sets(number: int, folder: Path, processes: int) -> None:
    words = ["trainer=ddp", "trainer.accelerator=cpu", f"trainer.devices={processes}", "recipe.batch_size=60"]
    config = compose_config(["experiment=demo_multilabel", *words])
    optimizer, objective = OptimizerSettings(name="sgd", lr=0.1), make_objective(config.recipe)
    for batch_size in (7, 64):
        data = SetsModule(stripes(batch_size).settings)
        task = ClassificationTask(classifier(), optimizer, ScheduleSettings(), ema=0.5, objective=objective)
        trainer = make_trainer(config, folder, logger=False, enable_checkpointing=False)
        trainer.validate(task, datamodule=data, verbose=False)
        seen = [list(task.validated), list(task.ema_validated), *task.predicted]
        torch.save(seen, folder / f"{batch_size}-of-{number}.pt")


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_mean_average_precision_is_exact_for_any_number_of_processes(tmp_path: Path, processes: int) -> None:
    in_process_group(processes, validate_sets, tmp_path, processes)
    images = Sets(1003)
    labels = images.sets
    logits = classifier()((images.images / 255 - 0.5) / 0.25).detach()
    expected = 100 * average_precision_score(labels.numpy(), logits.numpy())
    loss = make_objective(compose_config(["experiment=demo_multilabel"]).recipe).loss(logits, labels).item()
    saved = sorted(tmp_path.glob("*.pt"))
    assert len(saved) == 2 * processes
    for path in saved:
        val, ema, seen_labels, seen_logits = torch.load(path)
        assert val == [1003, pytest.approx(expected, abs=1e-4), pytest.approx(loss, rel=1e-5)]
        assert ema == val
        assert torch.equal(seen_labels, labels)
        torch.testing.assert_close(seen_logits, logits)


def test_predictions_of_a_single_image_are_a_list(tmp_path: Path) -> None:
    task = ClassificationTask(classifier(), OptimizerSettings(name="sgd", lr=0.1), ScheduleSettings())
    trainer = make_trainer(compose_config(["experiment=demo", "trainer.accelerator=cpu"]), tmp_path, logger=False)
    trainer.validate(task, datamodule=stripes(2, length=1), verbose=False)
    assert [values.shape for values in task.predicted] == [(1,), (1,)]


# --- what differs between processes, and what does not


def train_and_watch(number: int, folder: Path) -> None:
    """Train in one of two processes, and save its batches, first weights, dropout mask and collectives."""
    notes: dict[str, Any] = {"batches": []}
    real = ClassificationTask.training_step

    def step(self: ClassificationTask, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        if not notes["batches"]:
            notes["weights"] = nn.utils.parameters_to_vector(self.model.parameters()).detach().clone()
            notes["mask"] = F.dropout(torch.ones(1000))
            notes["gathered"] = gather_floats([number + 0.1, math.inf], self.trainer)
            notes["largest"] = max_over_ranks([number, 5 - number], self.trainer)
        notes["batches"].append(batch[0])
        return real(self, batch, batch_idx)

    ClassificationTask.training_step = step  # type: ignore[method-assign]  # of this process alone
    train(compose_config([*TINY, *TWO, "head=noah"]), folder / "run" if number == 0 else Path(os.devnull))
    torch.save(notes, folder / f"{number}.pt")


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("watched")
    in_process_group(2, train_and_watch, folder)
    return [torch.load(folder / f"{number}.pt") for number in range(2)]


def test_processes_start_with_the_weights_of_one(watched: list[dict[str, Any]]) -> None:
    assert torch.equal(watched[0]["weights"], watched[1]["weights"])


def test_collectives_give_every_process_the_same(watched: list[dict[str, Any]]) -> None:
    for notes in watched:
        assert notes["gathered"] == [[0.1, math.inf], [1.1, math.inf]]
        assert notes["largest"] == [1, 5]


def test_all_our_collectives_are_in_one_module() -> None:
    source = ROOT / "src" / "noah_lightning"
    calls = re.compile(r"(distributed|strategy)\.(all_|broadcast|barrier|gather|reduce|scatter)")
    found = {path.relative_to(source).as_posix() for path in source.rglob("*.py") if calls.search(path.read_text())}
    assert found == {"distributed/collectives.py"}


def test_dropout_differs_between_processes(watched: list[dict[str, Any]]) -> None:
    same = (watched[0]["mask"] == watched[1]["mask"]).float().mean()
    assert 0.4 < same < 0.6  # 6 standard errors about chance


def test_processes_see_together_what_one_would(watched: list[dict[str, Any]]) -> None:
    config = compose_config([*TINY, "trainer.accelerator=cpu"])
    data = create_data(**config.data.arguments())
    data.setup("fit")
    loader = data.train_dataloader()
    alone = [data.on_device.normalize(images) for _ in range(2) for images, _ in loader]  # two epochs of three steps
    assert len(alone) == len(watched[0]["batches"]) == len(watched[1]["batches"]) == 6
    for images, first, second in zip(alone, watched[0]["batches"], watched[1]["batches"], strict=True):
        assert torch.equal(images, torch.stack([first, second], dim=1).flatten(0, 1))


# --- noah train in two processes

# No batch norm and no dropout: what an image does to the weights does not depend on its neighbors.
TWENTY_STEPS = [
    "experiment=demo",
    "model=timm",
    "model.name=test_vit",
    "head=noah",
    "data.train_images=320",
    "data.val_images=1003",
    "recipe.batch_size=16",
    "recipe.head_dropout=0",
    "trainer.max_epochs=1",
    "trainer.precision=64-true",
]


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Launched:
    """Tests only read it."""
    return launch(tmp_path_factory.mktemp("two") / "here", *TWENTY_STEPS, *TWO)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of the same run in one process."""
    return run_here(tmp_path_factory.mktemp("one") / "run")


def run_here(run_dir: Path, *changes: str) -> Path:
    answer = call_noah("train", *TWENTY_STEPS, "trainer.accelerator=cpu", *changes, f"hydra.run.dir={run_dir}")
    assert answer.status == 0, answer.err
    return run_dir


def last_checkpoint(run_dir: Path) -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(run_dir / "checkpoints/last.ckpt", weights_only=True)
    return checkpoint


def test_two_processes_leave_one_run_directory_one_log_and_no_process(two_processes: Launched) -> None:
    assert (two_processes.status, two_processes.err) == (0, "")
    run_dir = run_dir_in(two_processes.folder)
    assert files_in(run_dir) == FILES
    lines = two_processes.out.splitlines()
    assert [line.split()[0] for line in lines] == ["run", "model", "data", "rate", "epoch", "best"]
    assert [re.sub(r"^\S+ \S+ ", "", line) for line in (run_dir / "train.log").read_text().splitlines()] == lines
    assert two_processes.out.count(" of 1,003)") == 2
    assert "digits, 10 classes, batch 8\n" in two_processes.out
    assert two_processes.behind == []


def test_twenty_steps_of_two_processes_are_those_of_one(two_processes: Launched, one_process: Path) -> None:
    assert_same_end(run_dir_in(two_processes.folder), one_process)


def test_twenty_steps_of_two_passes_are_those_of_one(tmp_path: Path) -> None:
    """Although the rate moves with each step: all passes of a step have that of the first one."""
    moving = ["recipe.schedule.name=cosine", "recipe.schedule.per=step", "data.val_images=10"]
    twice = run_here(tmp_path / "twice", *moving, "trainer.accumulate_grad_batches=2")
    assert_same_end(twice, run_here(tmp_path / "once", *moving))


def assert_same_end(run_dir: Path, other: Path) -> None:
    """After 20 steps in float64, weights that differ by 1e-6 at most."""
    ends = [last_checkpoint(run_dir), last_checkpoint(other)]
    assert [end["global_step"] for end in ends] == [20, 20]
    one, two = (end["state_dict"] for end in ends)
    assert one.keys() == two.keys()
    for name, weights in one.items():
        assert weights.dtype == torch.float64
        torch.testing.assert_close(two[name], weights, rtol=0, atol=1e-6, msg=name)


def test_two_processes_predict_what_one_does(two_processes: Launched, one_process: Path) -> None:
    two, one = (RunDir(path).predictions() for path in (run_dir_in(two_processes.folder), one_process))
    assert two.labels.tolist() == one.labels.tolist()
    assert two.guesses.tolist() == one.guesses.tolist()
    assert two.class_names == one.class_names


def test_predictions_are_those_of_the_best_epoch_in_the_order_of_the_data(two_processes: Launched) -> None:
    run_dir = run_dir_in(two_processes.folder)
    config = compose_config([*TWENTY_STEPS, *TWO])
    data = create_data(**config.data.arguments())
    data.setup("validate")
    record = RunDir(run_dir).predictions()
    assert record.labels.tolist() == [label for _, label in data.val_dataset]
    assert (record.labels == record.guesses).sum() == json.loads((run_dir / "results.json").read_text())["correct"]


# --- torchrun


@pytest.fixture(scope="module")
def under_torchrun(tmp_path_factory: pytest.TempPathFactory) -> Launched:
    """With batch norm and an average of the weights; tests only read it."""
    words = [*TINY, "head=gap", "recipe.ema=0.5", "trainer=ddp", "trainer.accelerator=cpu", "trainer.max_epochs=1"]
    return launch(tmp_path_factory.mktemp("torchrun") / "here", *words, torchrun=True)


def test_torchrun_leaves_one_run_directory_one_log_and_no_process(under_torchrun: Launched) -> None:
    assert under_torchrun.status == 0, under_torchrun.err
    assert files_in(run_dir_in(under_torchrun.folder)) == sorted([*FILES, "checkpoints/best_ema.ckpt"])
    first_words = [line.split()[0] for line in under_torchrun.out.splitlines()]
    assert first_words == ["run", "model", "data", "rate", "epoch", "epoch", "best", "best"]
    assert under_torchrun.behind == []


@pytest.mark.parametrize("weights", [[], ["--ema"]], ids=["model", "average"])
def test_one_process_evaluates_to_what_two_logged(under_torchrun: Launched, weights: list[str]) -> None:
    """So batch norm's statistics in the checkpoint are those that both processes validated with."""
    run_dir = run_dir_in(under_torchrun.folder)
    one = ["trainer.devices=1", "trainer.strategy=auto"]
    answer = call_noah("evaluate", str(run_dir), *weights, *one)
    logged = under_torchrun.out.splitlines()[-1 if weights else -2]
    assert answer.out.split("  val ")[1].split(" loss")[0] == logged.split("  val ")[1].split(" loss")[0]


def test_processes_that_nobody_asked_for_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torchrun_environment: None
) -> None:
    """Else each of them would train a model of its own."""
    monkeypatch.chdir(tmp_path)
    answer = call_noah("train", *TINY, "trainer.accelerator=cpu")
    assert (answer.status, answer.out) == (2, "")
    assert answer.err == (
        "noah: 2 processes were started, but trainer.devices and trainer.num_nodes require 1; add trainer=ddp\n"
    )
    assert files_in(tmp_path) == []


@pytest.mark.parametrize(("job", "count"), [("train", 4), ("bash", 1)])
def test_srun_starts_processes_but_an_interactive_shell_does_not(
    monkeypatch: pytest.MonkeyPatch, job: str, count: int
) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv("SLURM_JOB_NAME", job)
    assert processes_started() == count


@pytest.fixture
def torchrun_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the first of two processes that torchrun has started."""
    names = {"RANK": 0, "LOCAL_RANK": 0, "GROUP_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    for name, value in names.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "1")


# --- when a process fails

FOLDERS = ["model=timm", "model.name=test_resnet", "data=imagefolder", "data.image_size=32", "data.num_workers=0"]


def train_on(tree: Path) -> int:
    """Exit status of a run in two processes on a folder of images."""
    words = [*FOLDERS, *TWO, f"data.root={tree}", "head=gap", "recipe.batch_size=4", "trainer.max_epochs=1"]
    status = main(["train", *words, "hydra.run.dir=run"])
    assert multiprocessing.active_children() == []
    return status


@pytest.mark.usefixtures("forked")
def test_a_mistake_that_only_the_second_process_meets_is_one_line(
    jpeg_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    first_image = next(iter(EpochShuffle(16, seed=0, rank=1, world_size=2)))
    damaged = jpeg_tree / "train" / ("ant", "bee")[first_image // 8] / f"{first_image % 8}.jpg"
    damaged.write_text("not an image")
    assert train_on(jpeg_tree) == 2
    out, err = capfd.readouterr()
    assert re.fullmatch(rf"noah: {damaged} cannot be read as an image, .*\n", err)
    assert "Traceback" not in out


@pytest.mark.usefixtures("forked")
def test_a_crash_in_one_process_ends_all_and_is_reported_once(
    jpeg_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    real = F.cross_entropy

    def broken(*arguments: Any, **options: Any) -> Tensor:
        if rank() == 1:
            raise ZeroDivisionError("on purpose")
        return real(*arguments, **options)

    monkeypatch.setattr(F, "cross_entropy", broken)
    monkeypatch.chdir(tmp_path)
    assert train_on(jpeg_tree) == 1
    err = capfd.readouterr().err
    assert err.count("Traceback (most recent call last)") == 1
    *_, cause, verdict = err.splitlines()
    assert cause == "ZeroDivisionError: on purpose"
    assert verdict == "noah: process 1 exited with status 1; see its traceback above"
    assert not (tmp_path / "run" / "results.json").exists()


def interrupt(process: Process, out: Path, when: Callable[[str], bool]) -> int:
    """Exit status after Ctrl-C in a terminal, SIGINT to the whole process group, once ``when(output)``."""
    try:
        end = time.monotonic() + 120
        while not when(out.read_text() if out.exists() else ""):
            assert process.poll() is None
            assert time.monotonic() < end, "took too long"
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        return process.wait(60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


LONG_RUN = ["train", *TINY, *TWO, "head=gap", "trainer.max_epochs=1000"]


def test_ctrl_c_is_one_line_and_leaves_no_process(tmp_path: Path) -> None:
    out, err = tmp_path / "out.txt", tmp_path / "err.txt"
    run = Command(*LONG_RUN, cwd=tmp_path, out=out, err=err)
    status = interrupt(run, out, lambda text: "epoch 2/1000" in text)
    assert (status, err.read_text(), in_session(run.pid)) == (130, "", [])
    stopped = [line for line in out.read_text().splitlines() if "stopped" in line]
    assert stopped == out.read_text().splitlines()[-1:]
    assert re.fullmatch(r"stopped  by SIGINT after [\d,]+ steps; noah resume .*", stopped[0])
    assert stopped[0] in (run_dir_in(tmp_path) / "train.log").read_text()


@pytest.mark.slow
def test_ctrl_c_while_processes_start_is_no_traceback(tmp_path: Path) -> None:
    out, err, mark = tmp_path / "out.txt", tmp_path / "err.txt", uuid.uuid4().hex
    with out.open("w") as out_file, err.open("w") as err_file:
        program, known = [sys.executable, "-m", "noah_lightning", *LONG_RUN], {**os.environ, "NOAH_TEST": mark}
        run = subprocess.Popen(
            program, cwd=tmp_path, env=known, stdout=out_file, stderr=err_file, start_new_session=True
        )

    def all_import(_: str) -> bool:
        processes = [process for process in Path("/proc").glob("[0-9]*") if mark in environment_of(process)]
        return sum("libtorch_cpu" in file_of(process / "maps") for process in processes) == 3

    status = interrupt(run, out, all_import)
    assert (status, out.read_text(), err.read_text(), behind(mark)) == (130, "", "", [])


def fail(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ConfigError("a mistake"), 2, "2 a mistake"),
        (RunFailed("out of memory"), 1, "1 out of memory"),
        (RuntimeError("a crash"), 1, "1 process 0 exited with status 1; see its traceback above"),
    ],
    ids=repr,
)
def test_only_the_first_failure_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], error: Exception, status: int, line: str
) -> None:
    """The others fail only because the first one no longer answers."""
    with pytest.raises(SystemExit) as first:
        _work(tmp_path / "first", fail, (error,))
    reported = (tmp_path / "first").read_text(), capsys.readouterr().err
    with pytest.raises(SystemExit) as second:
        _work(tmp_path / "first", fail, (RuntimeError("connection closed"),))
    assert (first.value.code, second.value.code) == (status, 1)
    assert ((tmp_path / "first").read_text(), capsys.readouterr().err) == (reported[0], "")
    assert reported[0] == line
    assert ("RuntimeError: a crash" in reported[1]) == isinstance(error, RuntimeError)
