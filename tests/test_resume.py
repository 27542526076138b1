"""An interrupted run resumes as if it had not been interrupted."""

import csv
import os
import random
import re
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from omegaconf import OmegaConf

import faults
from commands import Command
from conftest import TINY, Answer
from noah_lightning.errors import RunFailed
from noah_lightning.loggers.metrics_csv import MetricsFile

Noah = Callable[..., Answer]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return faults.photographs(tmp_path_factory.mktemp("photographs"))


@pytest.fixture(scope="module")
def left_alone(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("alone") / "run"
    faults.run_with_kills(photographs, run, 1, [], signal.SIGKILL, start=start)
    return run


def start(words: list[str], log: Path) -> Command:
    return Command(*words, cwd=log.parent, out=log)


def test_killed_three_times_and_the_same_to_the_bit(photographs: Path, left_alone: Path, tmp_path: Path) -> None:
    """The short form of `make test-faults`: the moments are when so many steps have been saved."""
    draw = random.Random(1)
    moments = [faults.Moment(steps) for steps in sorted(draw.randrange(3, 140) for _ in range(3))]
    statuses = faults.run_with_kills(photographs, tmp_path / "run", 1, moments, signal.SIGKILL, start=start)
    assert statuses == [-9, -9, -9, 0]
    assert faults.differences(left_alone, tmp_path / "run") == []


@pytest.mark.slow
def test_sigterm_loses_nothing(photographs: Path, left_alone: Path, tmp_path: Path) -> None:
    """The state is that after the batch at which the signal came, although checkpoints are far between."""
    run = tmp_path / "run"
    words = ["checkpoint.every_n_steps=1000"]
    statuses = faults.run_with_kills(photographs, run, 1, [faults.Moment(20)], signal.SIGTERM, words)
    assert statuses == [128 + signal.SIGTERM, 0]
    log = (run / "train.log").read_text()
    stopped = log.split("stopped  by SIGTERM after ")[1].split(" steps")[0]
    assert int(stopped) >= 20
    assert f"resumed  after {stopped} steps" in log
    assert faults.differences(left_alone, run) == []


TRAIN = ("train", *TINY, "hydra.run.dir=run")


def interrupted_after(
    noah: Noah, monkeypatch: pytest.MonkeyPatch, steps: int, *words: str, command: Sequence[str] = TRAIN
) -> Answer:
    """A run in this process that gets SIGINT's flag after so many steps."""
    from noah_lightning.callbacks import checkpoints

    agree = checkpoints.Checkpoints._agree

    def stop_now(self: object, trainer: object) -> tuple[int, bool]:
        stop, late = agree(self, trainer)
        return (int(signal.SIGINT) if trainer.global_step >= steps else stop), late

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.Checkpoints, "_agree", stop_now)
        return noah(*command, *words)


@pytest.mark.parametrize("steps", [2, 3])
def test_interrupted_in_an_epoch_or_at_its_end(noah: Noah, monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    answer = interrupted_after(noah, monkeypatch, steps)
    assert (answer.status, answer.err) == (130, "")
    assert f"stopped  by SIGINT after {steps} steps; noah resume " in answer.out
    resumed = noah("resume", "run")
    assert (resumed.status, resumed.err) == (0, "")
    assert f"resumed  after {steps} steps, from" in resumed.out
    whole = noah("train", *TINY, "hydra.run.dir=whole")
    assert whole.status == 0
    assert faults.differences(Path("whole"), Path("run")) == []
    assert resumed.out.splitlines()[-1] == whole.out.splitlines()[-1]


def test_what_a_crash_left_of_a_checkpoint_goes(noah: Noah, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its metrics without it (of version 0.1), or a part of it, which would stay for ever."""
    interrupted_after(noah, monkeypatch, 2)
    for name in ("step-00000001.csv", "step-00000001.ckpt.part"):
        Path("run/checkpoints", name).write_text("part")
    assert noah("resume", "run").status == 0
    assert sorted(path.name for path in Path("run/checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]


def test_accumulated_gradients_are_never_cut_in_two(noah: Noah, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["trainer.accumulate_grad_batches=2", "recipe.batch_size=16", "checkpoint.every_n_steps=1"]
    interrupted_after(noah, monkeypatch, 4, *words)
    assert noah("resume", "run").status == 0
    assert noah("train", *TINY, *words, "hydra.run.dir=whole").status == 0
    assert faults.differences(Path("whole"), Path("run")) == []


def test_a_run_that_was_moved_keeps_its_best_epoch(noah: Noah, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted_after(noah, monkeypatch, 4)  # of the second epoch
    Path("run").rename("elsewhere")
    answer = noah("resume", "elsewhere")
    assert (answer.status, answer.err) == (0, "")
    assert noah("train", *TINY, "hydra.run.dir=whole").status == 0
    assert faults.differences(Path("whole"), Path("elsewhere")) == []


def test_a_finished_run_does_not_resume(noah: Noah) -> None:
    assert noah("train", *TINY, "trainer.max_epochs=1", "hydra.run.dir=run").status == 0
    assert sorted(path.name for path in Path("run/checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    answer = noah("resume", "run")
    assert (answer.status, answer.out) == (2, "")
    assert answer.err == "noah: run has finished; noah evaluate run repeats its validation\n"


def test_settings_stay_as_they_were(noah: Noah, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted_after(noah, monkeypatch, 2)
    before = Path("run/metrics.csv").read_bytes()
    for word, message in (
        ("recipe.optimizer.lr=1", "was started with recipe.optimizer.lr=0.003, not 1"),
        ("recipe.batch_size=16", "was started with recipe.batch_size=32, not 16"),
        ("recipe.batchsize=16", "did you mean recipe.batch_size"),
    ):
        answer = noah("resume", "run", word)
        assert answer.status == 2
        assert message in answer.err
        assert answer.err.count("\n") == 1
    assert Path("run/metrics.csv").read_bytes() == before
    assert noah("resume", "run", "data.num_workers=1").status == 0


def test_other_settings_are_refused_before_processes_start(
    noah: Noah, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    interrupted_after(noah, monkeypatch, 2)

    def start(*_: object, **__: object) -> None:
        raise AssertionError("processes were started")

    monkeypatch.setattr("noah_lightning.sweep.job.run_in_processes", start)
    answer = noah("resume", "run", "trainer.devices=2", "trainer.strategy=ddp", "seed=1")
    assert answer.status == 2
    assert "was started with " in answer.err


def test_another_number_of_processes_is_refused(noah: Noah, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted_after(noah, monkeypatch, 2)
    path = Path("run/checkpoints/last.ckpt").resolve()
    content = torch.load(path, weights_only=True)
    content["batch_split"][0] = 2
    torch.save(content, path)
    answer = noah("resume", "run")
    assert answer.status == 2
    assert (
        "was started with steps of 2 × 32 images, not 32 images; resume with as many processes, or add " in answer.err
    )


class TestForce:
    @pytest.mark.parametrize(
        ("done", "word", "message", "images", "steps"),
        [
            (2, "trainer.accumulate_grad_batches=2", "16 images × 2 passes", 16, 8),
            pytest.param(3, "recipe.batch_size=24", "24 images", 24, 7, marks=pytest.mark.slow),
            (4, "recipe.batch_size=24", "24 images", 24, 8),
        ],
    )
    def test_another_split_restarts_the_epoch(
        self, noah: Noah, monkeypatch: pytest.MonkeyPatch, done: int, word: str, message: str, images: int, steps: int
    ) -> None:
        """Of 2 epochs of 96 images: 3 steps of 32, or 4 of 24."""
        interrupted_after(noah, monkeypatch, done)
        before = Path("run/config.yaml").read_bytes()
        refused = noah("resume", "run", word)
        assert refused.status == 2
        assert "changes are accepted with --force, which restarts the epoch\n" in refused.err
        assert Path("run/config.yaml").read_bytes() == before
        answer = noah("resume", "run", "--force", word)
        assert (answer.status, answer.err) == (0, "")
        assert (
            f"forced   {message} instead of 32 images in a step: epoch {1 + done // 3} restarts from its beginning, "
            f"with the weights of step {done}\n"
        ) in answer.out
        assert f"resumed  after {done} steps" in answer.out
        assert Path(f"run/config-until-step-{done:08}.yaml").read_bytes() == before
        assert OmegaConf.load("run/config.yaml").data.batch_size == images
        state = torch.load("run/checkpoints/last.ckpt", weights_only=True)
        assert state["global_step"] == steps
        assert state["epoch"] == 1
        with Path("run/metrics.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [int(row["step"]) for row in rows] == sorted(int(row["step"]) for row in rows)
        validated = [(row["epoch"], int(row["step"])) for row in rows if row["val/top1"]]
        assert validated == [("0", 2 if done > 2 else 4), ("1", steps - 1)]
        assert all(0 <= float(row["train/top1"]) <= 100 for row in rows if row["train/top1"])

    def test_and_is_exact_from_then_on(self, noah: Noah, monkeypatch: pytest.MonkeyPatch) -> None:
        interrupted_after(noah, monkeypatch, 2)
        shutil.copytree("run", "whole")
        word = "trainer.accumulate_grad_batches=2"
        assert noah("resume", "whole", "--force", word).status == 0
        interrupted_after(noah, monkeypatch, 4, word, command=["resume", "run", "--force"])
        assert noah("resume", "run").status == 0
        assert faults.differences(Path("whole"), Path("run")) == []

    def test_nothing_else_may_differ(self, noah: Noah, monkeypatch: pytest.MonkeyPatch) -> None:
        interrupted_after(noah, monkeypatch, 2)
        for word, message in (
            ("recipe.optimizer.lr=1", "was started with recipe.optimizer.lr=0.003, not 1"),
            ("data.batch_size=16", "data.batch_size follows from recipe.batch_size and the processes"),
            (
                "trainer.accumulate_grad_batches=5",
                "recipe.batch_size=32 cannot be divided among 5",
            ),
        ):
            answer = noah("resume", "run", "--force", word)
            assert answer.status == 2
            assert message in answer.err
            assert answer.err.count("\n") == 1

    @pytest.mark.slow
    def test_other_processes(self, photographs: Path, tmp_path: Path) -> None:
        """Two, then one, then two."""
        run, log = tmp_path / "run", tmp_path / "log"
        process = faults.start(faults.command(photographs, run, 2), log)
        for steps, devices in ((20, 1), (80, 2)):
            assert not faults.ended_before(process, run, faults.Moment(steps))
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            process = faults.start(["resume", str(run), "--force", f"trainer.devices={devices}"], log)
        process.wait(timeout=300)
        assert (run / "results.json").exists(), log.read_text()[-2000:]
        message = re.findall(r"forced   (.*) in a step: epoch (\d) restarts .* of step (\d+)\n", log.read_text())
        assert [split for split, *_ in message] == [
            "8 images instead of 2 × 4 images",
            "2 × 4 images instead of 8 images",
        ]
        *_, (_, epoch, step) = message
        left = (3 - (int(epoch) - 1)) * faults.IMAGES // 8
        assert torch.load(run / "checkpoints/last.ckpt", weights_only=True)["global_step"] == int(step) + left

    def test_with_nothing_to_force_it_is_exact(self, noah: Noah, monkeypatch: pytest.MonkeyPatch) -> None:
        interrupted_after(noah, monkeypatch, 2)
        answer = noah("resume", "run", "--force")
        assert answer.status == 0
        assert "forced" not in answer.out
        assert noah("train", *TINY, "hydra.run.dir=whole").status == 0
        assert faults.differences(Path("whole"), Path("run")) == []
        assert not list(Path("run").glob("config-until*"))


@pytest.mark.parametrize(
    ("folder", "message"), [("nowhere", "is not a run directory"), (".", "is not a run directory")]
)
def test_without_a_run_there_is_nothing_to_resume(noah: Noah, folder: str, message: str) -> None:
    answer = noah("resume", folder)
    assert (answer.status, answer.out) == (2, "")
    assert message in answer.err


def test_a_sweep_is_resumed_by_its_command(noah: Noah) -> None:
    Path("sweep").mkdir()
    Path("sweep/sweep.json").write_text('{"command": []}')
    answer = noah("resume", "sweep")
    assert answer.status == 2
    assert answer.err.endswith("; to resume a sweep, repeat its command with sweep.resume=true\n")


def test_a_run_on_a_cpu_that_was_recorded_with_16_bits_resumes(noah: Noah, monkeypatch: pytest.MonkeyPatch) -> None:
    """As all did before they were refused, it trains in bfloat16."""
    cpu = "trainer.accelerator=cpu"
    interrupted_after(noah, monkeypatch, 2, "trainer.precision=bf16-mixed", cpu)
    recorded = Path("run/config.yaml")
    recorded.write_text(recorded.read_text().replace("precision: bf16-mixed", "precision: 16-mixed"))
    answer = noah("resume", "run")
    assert (answer.status, answer.err) == (0, "")
    assert noah("evaluate", "run").status == 0


def test_damaged_checkpoints_are_passed_over(noah: Noah, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted_after(noah, monkeypatch, 2, "checkpoint.every_n_steps=1")
    latest = Path("run/checkpoints/step-00000002.ckpt")
    latest.write_bytes(latest.read_bytes()[:-100])
    answer = noah("resume", "run")
    assert (answer.status, answer.err) == (0, "")
    assert "step-00000002.ckpt cannot be read as a checkpoint" in answer.out
    assert "resumed  after 1 step, from" in answer.out
    assert noah("train", *TINY, "checkpoint.every_n_steps=1", "hydra.run.dir=whole").status == 0
    assert faults.differences(Path("whole"), Path("run")) == []


def test_a_damaged_checkpoint_does_not_count_among_those_kept(noah: Noah, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted_after(noah, monkeypatch, 3, "checkpoint.every_n_steps=1", "checkpoint.keep=2")
    latest = Path("run/checkpoints/step-00000003.ckpt")
    latest.write_bytes(latest.read_bytes()[:-100])

    def fit(*_: object, **__: object) -> None:
        raise RunFailed("the power is gone")

    monkeypatch.setattr(pl.Trainer, "fit", fit)
    assert noah("resume", "run").status == 1
    kept = Path("run/checkpoints")
    assert sorted(path.name for path in kept.glob("step-*")) == ["step-00000002.ckpt"]
    assert (kept / "last.ckpt").resolve().name == "step-00000002.ckpt"


def test_nothing_restarts_over_damaged_checkpoints(noah: Noah, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted_after(noah, monkeypatch, 2, "checkpoint.every_n_steps=1")
    for path in Path("run/checkpoints").glob("step-*.ckpt"):
        path.write_text("nothing")
    answer = noah("resume", "run")
    assert answer.status == 2
    assert "no checkpoint in run/checkpoints can be read" in answer.err.replace(str(Path.cwd()) + "/", "")


def test_a_run_without_a_checkpoint_restarts_from_scratch(noah: Noah, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted_after(noah, monkeypatch, 1, "checkpoint.every_n_steps=1000")
    for path in Path("run/checkpoints").iterdir():
        path.unlink()
    assert noah("resume", "run").status == 0
    assert noah("train", *TINY, "checkpoint.every_n_steps=1000", "hydra.run.dir=whole").status == 0
    assert faults.differences(Path("whole"), Path("run")) == []


def metrics(folder: Path, *rows: dict[str, float], resume: int | None = None) -> MetricsFile:
    """metrics.csv with some more rows, of which each is written by itself."""
    logger = MetricsFile(folder)
    if resume is not None:
        logger.resume(resume)
    for step, row in enumerate(rows, resume or 0):
        logger.log_metrics(row, step)
        logger.save()
    return logger


ROWS = [{"loss": 3.0}, {"loss": 2.0}, {"loss": 1.0, "top1": 50.0}, {"loss": 0.5}]


@pytest.mark.parametrize("kept", range(5))
def test_metrics_are_cut_to_the_rows_of_the_checkpoint(tmp_path: Path, kept: int) -> None:
    """Also where a metric that is new since then has made all rows longer."""
    whole = metrics(tmp_path / "whole", *ROWS)
    assert metrics(tmp_path / "run", *ROWS[:kept]).rows == kept
    metrics(tmp_path / "run", *ROWS[kept:], resume=kept)
    resumed = metrics(tmp_path / "run", *ROWS[kept:], resume=kept)
    assert resumed.rows == whole.rows == 4
    assert (tmp_path / "run/metrics.csv").read_bytes() == (tmp_path / "whole/metrics.csv").read_bytes()


@pytest.mark.parametrize(
    ("content", "left"),
    [
        (b"loss,step\r\n3.0,0\r\n2.0", b"loss,step\r\n3.0,0\r\n"),
        (b"loss,step\r\n3.0,0\r\n2.0,1,9,9\r\n", b"loss,step\r\n3.0,0\r\n"),
        (b"\xff\x00", None),
        (b"", None),
    ],
)
def test_damaged_metrics_lose_the_rows_that_are_not_whole(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes, left: bytes | None
) -> None:
    path = tmp_path / "metrics.csv"
    path.write_bytes(content)
    logger = metrics(tmp_path, resume=2)
    assert f"metrics.csv holds only {logger.rows} of the 2 rows logged before the checkpoint" in caplog.text
    assert (path.read_bytes() if path.exists() else None) == left
