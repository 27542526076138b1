"""TensorBoard and Weights & Biases beside metrics.csv."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.errors import AuthenticationError, CommError, UsageError

from conftest import TINY, Answer, FinishedRun, call_noah
from noah_lightning.callbacks.attention_images import attention_of_guess, evaluating
from noah_lightning.config.compose import compose_config
from noah_lightning.loggers.factory import refused, run_id, run_name, tags
from noah_lightning.models.classifier import create_model
from noah_lightning.run_dir import RunDir
from test_sweep import marked_processes, wait_until

Noah = Callable[..., Answer]
QUICK = [*TINY, "data.train_images=32", "data.val_images=20", "recipe.batch_size=16"]
FOLDERS = ["model=timm", "model.name=test_resnet", "data=imagefolder", "data.image_size=32", "data.num_workers=0"]
SMALL = [*FOLDERS, "recipe.batch_size=4", "trainer.max_epochs=1", "recipe.schedule.warmup_epochs=0"]
RUN_FILES = "wandb/offline-run-*/*.wandb"


@dataclass
class OfflineRun:
    """What W&B keeps of an offline run in its ``.wandb`` file."""

    run: Any
    exit_code: int | None = None
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)


def records(file: Path) -> Iterator[Any]:
    """The messages of a ``.wandb`` file: LevelDB's log format behind a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    content, at, message = file.read_bytes(), 7, b""
    while at + 7 <= len(content):
        left_in_block = 32768 - at % 32768
        if left_in_block < 7:
            at += left_in_block
            continue
        size, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        if at + 7 + size > len(content):
            return  # still being written
        message += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield wandb_internal_pb2.Record.FromString(message)
            message = b""


def _all_records(file: Path) -> list[Any]:
    """W&B closes the file a moment after the run."""
    for _ in range(100):
        messages = list(records(file))
        if messages and any(message.HasField("exit") for message in messages):
            return messages
        time.sleep(0.1)
    raise AssertionError(f"{file} was never closed")


def values(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def offline_runs(run_dir: Path) -> list[OfflineRun]:
    """All W&B runs in a run directory."""
    found = []
    for file in sorted(run_dir.glob(RUN_FILES)):
        messages = _all_records(file)
        [run] = [message.run for message in messages if message.HasField("run")]
        offline = OfflineRun(run, config=values(run.config.update))
        for message in messages:
            if message.HasField("exit"):
                offline.exit_code = message.exit.exit_code
            elif message.HasField("summary"):
                offline.summary |= values(message.summary.update)
            elif message.HasField("history"):
                offline.history.append(values(message.history.item))
        found.append(offline)
    return found


def go_offline(patch: pytest.MonkeyPatch) -> None:
    """W&B as in a fresh account-less home, and silent."""
    for key in [key for key in os.environ if key.startswith("WANDB")]:
        patch.delenv(key)
    patch.setenv("WANDB_MODE", "offline")
    patch.setenv("WANDB_SILENT", "true")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    go_offline(monkeypatch)


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a W&B run of five epochs of two steps; tests only read it."""
    words = ["head=noah", "logger=wandb", "logger.tags=[mine,noah]", "logger.entity=us", "logger.project=heads"]
    often = ["trainer.max_epochs=5", "trainer.log_every_n_steps=1", "attention.picture_every_n_epochs=2"]
    run_dir = tmp_path_factory.mktemp("logged") / "run"
    with pytest.MonkeyPatch.context() as patch:
        go_offline(patch)
        answer = call_noah("train", *QUICK, *words, *often, "recipe.ema=0.5", f"hydra.run.dir={run_dir}")
    assert answer.status == 0, answer.err
    return run_dir


def column(run: Path, name: str) -> list[float]:
    """The values of a metric, without rows that have none; empty without such a metric."""
    with (run / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def validations(run: Path) -> list[float]:
    return column(run, "val/top1")


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
        "noah: logger.mode='onlin' must be online, offline, disabled, or null\n",
    )


def test_the_csv_alone_is_the_default(finished_run: FinishedRun) -> None:
    assert validations(finished_run.path)
    assert not list(finished_run.path.glob("wandb*"))
    assert not list(finished_run.path.rglob("events*"))


# --- what W&B is told


def test_wandb_knows_the_run_its_settings_and_its_results(logged: Path) -> None:
    [told] = offline_runs(logged)
    assert (told.run.entity, told.run.project, told.run.run_group) == ("us", "heads", "")
    assert told.run.display_name == "test_resnet-noah-N4-r0.5-seed0"
    assert list(told.run.tags) == ["mine", "noah", "test_resnet", "N=4", "r=0.5"]
    assert told.config["head"]["head_num"] == 4
    assert told.config["recipe"]["ema"] == 0.5
    assert told.exit_code == 0
    results = RunDir(logged).results()
    expected = {
        "parameters": results.parameters,
        "images_per_second": results.images_per_second,
        "train_seconds": results.train_seconds,
        "best/top1": results.top1,
        "best/epoch": results.best_epoch,
        "val/top1": validations(logged)[-1],
    }
    assert {key: told.summary[key] for key in expected} == pytest.approx(expected)
    assert "best/ema_top1" in told.summary


def test_wandb_gets_each_epochs_metrics_and_what_the_heads_attention_looks_like(logged: Path) -> None:
    [told] = offline_runs(logged)
    assert [row["val/top1"] for row in told.history if "val/top1" in row] == pytest.approx(validations(logged))
    speeds = [row["train/images_per_second"] for row in told.history if "train/images_per_second" in row]
    assert len(speeds) == 5
    assert min(speeds) < RunDir(logged).results().images_per_second < max(speeds)
    assert len([row for row in told.history if "train/lr" in row]) == 10, "each step"
    validated = [row for row in told.history if "val/top1" in row]
    for name in ("val/attention_entropy", "val/attention_diversity"):
        assert [row[name] for row in validated] == pytest.approx(column(logged, name))
    pictures = [row for row in told.history if "val/attention/filenames" in row]
    assert [row["val/attention/captions"] for row in pictures] == [["epoch 2"], ["epoch 4"], ["epoch 5"]]
    assert [row["trainer/global_step"] for row in pictures] == [3, 7, 9], "those of the epochs' metrics"
    [file] = pictures[0]["val/attention/filenames"]
    [path] = logged.glob(f"wandb/offline-run-*/files/{file}")
    assert np.asarray(Image.open(path)).std() > 10, "something is drawn"


@pytest.mark.usefixtures("offline")
def test_pictures_do_not_change_training(noah: Noah) -> None:
    """Dropout draws random numbers, so one number more would change all that follow."""
    words = ["head=noah", "logger=wandb", "head.dropout=0.5", "recipe.mixing.mixup=0.2"]
    for every in (0, 1):
        answer = noah(
            "train", *QUICK, *words, f"attention.picture_every_n_epochs={every}", f"hydra.run.dir=every{every}"
        )
        assert answer.status == 0, answer.err
    weights = [torch.load(f"every{n}/checkpoints/last.ckpt", weights_only=True)["state_dict"] for n in (0, 1)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert [len(list(Path(f"every{n}").rglob("attention_*.png"))) for n in (0, 1)] == [0, 2]


def test_modes_are_put_back_module_by_module() -> None:
    model = create_model("test_resnet", head="noah", num_classes=3, head_num=2, key_ratio=0.5).train()
    frozen = next(module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)).eval()
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert [module for module in model.modules() if not module.training] == [frozen]


def test_the_picture_shows_the_attention_of_the_guess() -> None:
    model = create_model("test_resnet", head="noah", num_classes=3, head_num=2, key_ratio=0.5).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        guesses, attention = attention_of_guess(model, images)  # type: ignore[arg-type]
        assert guesses.equal(model(images).argmax(dim=1))
        heads = model.explain(images).attention  # type: ignore[operator]  # (2, N, K, L)
        assert attention.equal(torch.stack([heads[i, :, guesses[i]].mean(0) for i in range(2)]))


def test_metrics_csv_holds_no_clock(finished_run: FinishedRun) -> None:
    """So a run that is repeated or resumed leaves the same file, to the byte."""
    assert "images_per_second" not in (finished_run.path / "metrics.csv").read_text()


# --- how a W&B run ends


@pytest.mark.usefixtures("offline")
def test_a_run_that_fails_is_closed_as_failed(noah: Noah, jpeg_tree: Path) -> None:
    (jpeg_tree / "train/ant/3.jpg").write_text("not an image")
    answer = noah("train", *SMALL, f"data.root={jpeg_tree}", "logger=wandb", "hydra.run.dir=run")
    assert answer.status == 2
    [told] = offline_runs(Path("run"))
    assert told.exit_code == 1
    assert "best/top1" not in told.summary


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_or_crashed_run_is_closed_as_failed(
    noah: Noah, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def fail(*_: object) -> None:
        raise error("now")

    monkeypatch.setattr("noah_lightning.callbacks.progress.EpochReport.on_train_batch_end", fail)
    command = ["train", *QUICK, "logger=wandb", "hydra.run.dir=run"]
    if error is RuntimeError:
        with pytest.raises(RuntimeError, match="now"):
            noah(*command)
    else:
        assert noah(*command).status == 130
    assert [told.exit_code for told in offline_runs(Path("run"))] == [1]


@pytest.mark.usefixtures("offline")
def test_a_crash_after_the_last_epoch_is_a_failure_too(noah: Noah, monkeypatch: pytest.MonkeyPatch) -> None:
    """With another head, which has no picture."""

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("noah_lightning.run_dir.RunDir.write_results", fail)
    with pytest.raises(OSError, match="disk full"):
        noah("train", *QUICK, "head=gap", "logger=wandb", "trainer.max_epochs=1", "hydra.run.dir=run")
    [told] = offline_runs(Path("run"))
    assert told.exit_code == 1
    assert told.run.display_name == "test_resnet-gap-seed0"
    assert list(told.run.tags) == ["test_resnet", "gap"]
    assert not list(Path("run").rglob("*.png"))


def test_what_wandb_refuses_is_one_line(noah: Noah, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    answer = noah("train", *QUICK, "logger=wandb", "logger.project=a/b", "trainer.max_epochs=1")
    assert answer.status == 2
    assert answer.err.splitlines()[-1].startswith("noah: W&B: ")
    assert "logger.mode=offline" not in answer.err  # it is, and would not help
    assert "anonymous" not in answer.out + answer.err  # a setting that nobody made


@pytest.mark.parametrize(
    ("error", "advised"),
    [
        (CommError("no such host"), True),
        (AuthenticationError("invalid key"), True),
        (UsageError("api_key not configured (no-tty). call wandb.login(key=[your_api_key])"), True),
        (UsageError("No API key configured. Use `wandb login` to log in."), True),
        (UsageError("Invalid project name 'a/b'"), False),
        (ValueError("the report has no such panel"), False),
    ],
)
def test_being_offline_is_advised_where_it_helps(error: Exception, advised: bool) -> None:
    assert str(refused(error, "stay offline")) == f"W&B: {error}{'; stay offline' if advised else ''}"


# --- sweeps, and attempts that are repeated


@pytest.mark.usefixtures("offline")
def test_a_sweep_is_a_group_with_a_run_for_each_job_and_a_repeated_job_keeps_its_run(
    noah: Noah, jpeg_tree: Path
) -> None:
    damaged = jpeg_tree.with_name("damaged")
    shutil.copytree(jpeg_tree, damaged)
    (damaged / "train/ant/3.jpg").write_text("not an image")
    roots = f"data.root={jpeg_tree},{damaged}"
    command = ["train", "-m", *SMALL, "head=noah", "data.num_classes=2", roots, "logger=wandb", "sweep.dir=pair"]
    command.append("hydra/launcher=basic")  # in this process, whose imports are done
    assert noah(*command).status == 1
    first = [offline_runs(Path("pair", n)) for n in ("0", "1")]
    assert [len(runs) for runs in first] == [1, 1]
    assert [runs[0].exit_code for runs in first] == [0, 1]
    assert {runs[0].run.run_group for runs in first} == {"pair"}
    assert len({runs[0].run.run_id for runs in first}) == 2

    (damaged / "train/ant/3.jpg").write_bytes((damaged / "train/ant/2.jpg").read_bytes())
    answer = noah(*command, "sweep.resume=true")
    assert answer.status == 0, answer.err
    [again] = offline_runs(Path("pair/1"))
    assert again.run.run_id == first[1][0].run.run_id
    assert again.exit_code == 0
    assert offline_runs(Path("pair/.unfinished/1-1"))[0].exit_code == 1, "the attempt that failed is kept"


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
@pytest.mark.usefixtures("offline")
@pytest.mark.slow
def test_a_sweep_killed_in_a_job_goes_on_with_the_jobs_own_run(noah: Noah, tmp_path: Path) -> None:
    marker = f"NOAH_TEST_{os.getpid()}_{tmp_path.name}"
    words = ["data.train_images=320", "trainer.max_epochs=3", "head=noah", "seed=0,1", "logger=wandb"]
    command = ["train", "-m", *QUICK, *words, "sweep.dir=pair"]
    program = [sys.executable, "-m", "noah_lightning", *command]
    killed = subprocess.Popen(program, env={**os.environ, marker: "1"}, stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: any(Path("pair/1").glob(RUN_FILES)))
    finally:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    wait_until(lambda: not marked_processes(marker))
    assert not Path("pair/1/results.json").exists(), "in mid-job"
    [finished] = offline_runs(Path("pair/0"))

    answer = noah(*command, "sweep.resume=true")
    assert answer.status == 0, answer.err
    assert "2 of 2 jobs finished, 1 of them before" in answer.out
    _, again = sorted(Path("pair/1").glob(RUN_FILES))  # the one that was broken off has no end
    messages = _all_records(again)
    assert [message.run.run_group for message in messages if message.HasField("run")] == ["pair"]
    assert [message.exit.exit_code for message in messages if message.HasField("exit")] == [0]
    ids = {file.stem.removeprefix("run-") for file in Path("pair").rglob("*.wandb")}
    assert ids == {finished.run.run_id, run_id(Path("pair/1"))}, "both files are of one run"


@pytest.mark.usefixtures("forked")
def test_of_several_processes_one_writes(noah: Noah, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    words = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.max_epochs=1"]
    answer = noah("train", *QUICK, *words, "head=noah", "logger=wandb", "hydra.run.dir=run")
    assert answer.status == 0, answer.err
    [told] = offline_runs(Path("run"))
    assert told.exit_code == 0
    assert "best/top1" in told.summary
    assert len(list(Path("run").rglob("attention_*.png"))) == 1
    assert len(column(Path("run"), "val/attention_entropy")) == 1


def test_the_id_is_that_of_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_id(Path("a/../run")) == run_id(tmp_path / "run") != run_id(tmp_path / "other")


# --- settings


def test_a_tag_that_both_give_stands_once_and_long_names_are_cut() -> None:
    config = compose_config(["experiment=demo", "head=gap", "logger=wandb", "logger.tags=[gap,x]"])
    config = config.replace("model", name="m" * 70)
    assert tags(config) == ["gap", "x", "m" * 64]
    assert run_name(config) == f"{'m' * 70}-gap-seed0"
