"""Sweeps: planned before anything is trained, unharmed by a failure, continued where they were broken off."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import TINY, Answer
from noah_lightning.config import compose_config
from noah_lightning.errors import ConfigError
from noah_lightning.runs import read_config
from noah_lightning.sweep import plan, run

Noah = Callable[..., Answer]
QUICK = [*TINY, "data.train_images=32", "data.val_images=20", "recipe.batch_size=16", "trainer.max_epochs=1"]
PRESETS = sorted(path.stem for path in (Path(__file__).parents[1] / "conf" / "sweep").glob("*.yaml"))


def lines(answer: Answer, word: str) -> list[str]:
    """The lines that begin with ``word``, without it."""
    return [line.removeprefix(word).strip() for line in answer.out.splitlines() if line.startswith(word)]


def finished(folder: Path) -> set[str]:
    return {path.parent.name for path in folder.glob("*/results.json")}


# --- the plan


def test_every_combination_is_a_job() -> None:
    jobs = plan.expand(["experiment=demo", "head.head_num=1,2", "seed=choice(3,4,5)"])
    assert [str(job) for job in jobs[:4]] == [
        "head.head_num=1 seed=3",
        "head.head_num=1 seed=4",
        "head.head_num=1 seed=5",
        "head.head_num=2 seed=3",
    ]
    assert [job.number for job in jobs] == list(range(6))
    assert (jobs[5].config.head.head_num, jobs[5].config.seed) == (2, 5)


def test_lists_are_values_not_choices() -> None:
    assert len(plan.expand(["experiment=demo", "data.mean=[0,0.5,1]"])) == 1


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_a_sweep_of_the_papers_rows(preset: str) -> None:
    _, command = plan.split_options([f"sweep={preset}", "model=resnet18"])
    jobs = plan.expand(command)
    assert len(jobs) > 1
    assert len({str(job.config) for job in jobs}) == len(jobs), "each job has settings of its own"


def test_the_command_line_wins_over_the_preset() -> None:
    _, command = plan.split_options(["sweep=heads", "seed=7"])
    assert {(job.config.head.name, job.config.seed) for job in plan.expand(command)} == {("gap", 7), ("noah", 7)}


def test_the_sweeps_own_options_reach_no_run() -> None:
    options, command = plan.split_options(["sweep.resume=true", "sweep.dir=there", "sweep.jobs=3", "seed=1,2"])
    assert options == plan.Options(resume=True, dir="there", jobs=3)
    assert command == ["seed=1,2"]


def test_impossible_heads_are_found_without_training() -> None:
    jobs = plan.expand(["model=resnet50", "head.head_num=3,4", "head.key_ratio=0.125,0.25"])
    reasons = plan.impossible(jobs)
    assert sorted(reasons) == [0, 1]
    assert "head_num=3 does not divide the 256 key and 1792 value channels" in reasons[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sweep=hed"], "sweep has no preset 'hed'; did you mean heads"),
        (["sweep.rsume=true"], "there is no setting 'sweep.rsume'; did you mean sweep.resume"),
        (["sweep.resume=maybe"], "sweep.resume=maybe must be true or false"),
        (["sweep.jobs=0"], "sweep.jobs=0 must be a whole number of at least 1"),
        (["sweep.jobs=two"], "sweep.jobs='two' must be a whole number of at least 1"),
    ],
)
def test_a_mistake_in_the_sweeps_options_is_named(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan.split_options(words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["head.hed_num=1,2"], "there is no setting 'head.hed_num'"),
        (["model=resnet18,resnet999"], "model has no option 'resnet999'"),
        (["head=noah", "head.head_num=5,7"], "no job of the sweep can be: NOAH: head_num=5 does not divide"),
        (["seed=0,1", "sweep.resume=true"], "there is no sweep of this command in runs/"),
    ],
)
def test_a_mistake_in_the_command_trains_nothing(words: list[str], message: str, noah: Noah) -> None:
    answer = noah("train", "-m", *QUICK, *words)
    assert answer.status == 2
    assert message in answer.err
    assert answer.err.count("\n") == 1
    assert not Path("runs").exists()


def test_a_sweeps_option_needs_a_sweep(noah: Noah) -> None:
    answer = noah("train", *QUICK, "sweep.resume=true")
    assert answer.err == "noah: sweep… and hydra/launcher are for several runs: add -m\n"


def test_a_sweep_does_not_run_under_torchrun(noah: Noah, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    assert "leave torchrun or srun out" in noah("train", "-m", *QUICK, "seed=0,1").err


# --- the course


@pytest.fixture(scope="module")
def with_failures(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Answer, Answer]:
    """A sweep of twelve jobs of which two fail, and the same command once more with sweep.resume=true."""
    from conftest import call_noah

    folder = tmp_path_factory.mktemp("sweep")
    before = Path.cwd()
    os.chdir(folder)
    command = ["train", "-m", *QUICK, "head=noah", "seed=0,1,2,-3,4,5,6,7,-8,9,10,11", "sweep.dir=twelve"]
    try:
        return folder / "twelve", call_noah(*command), call_noah(*command, "sweep.resume=true")
    finally:
        os.chdir(before)


def test_a_failure_leaves_the_other_jobs_alone(with_failures: tuple[Path, Answer, Answer]) -> None:
    folder, first, _ = with_failures
    seeds = [0, 1, 2, -3, 4, 5, 6, 7, -8, 9, 10, 11]
    assert finished(folder) == {str(n) for n in range(12)} - {"3", "8"}
    assert first.status == 1
    assert lines(first, "started") == [f"{n}  seed={seed}" for n, seed in enumerate(seeds)]


def test_failures_are_told_at_once_and_in_the_end(with_failures: tuple[Path, Answer, Answer]) -> None:
    _, first, _ = with_failures
    reason = "must be a whole number from 0 to 4294967295"
    told = [line for line in first.err.splitlines() if line.startswith("failed")]
    assert told == 2 * [f"failed   3  seed=-3: seed=-3 {reason}", f"failed   8  seed=-8: seed=-8 {reason}"]
    assert "10 of 12 jobs finished, 2 failed" in first.out
    assert first.err.splitlines()[-1] == "noah: 2 of 12 jobs failed; sweep.resume=true repeats only those"


def test_each_job_has_its_own_settings(with_failures: tuple[Path, Answer, Answer]) -> None:
    folder, _, _ = with_failures
    assert [read_config(folder / n).seed for n in ("0", "5", "11")] == [0, 5, 11]


def test_resuming_repeats_only_what_failed(with_failures: tuple[Path, Answer, Answer]) -> None:
    _, _, again = with_failures
    assert [line.split()[0] for line in lines(again, "started")] == ["3", "8"]
    assert "10 of them before" in again.out
    assert again.status == 1


def test_a_sweep_never_overwrites_another(with_failures: tuple[Path, Answer, Answer], noah: Noah) -> None:
    answer = noah("train", "-m", *QUICK, "seed=0,1", f"sweep.dir={with_failures[0]}")
    assert answer.status == 2
    assert "holds a sweep already; sweep.resume=true goes on with it" in answer.err


def test_impossible_jobs_are_told_and_skipped(noah: Noah) -> None:
    answer = noah("train", "-m", *QUICK, "head=noah", "head.head_num=5,2", "sweep.dir=pair")
    assert answer.status == 0, answer.err
    assert lines(answer, "skipped")[0].startswith("0  head.head_num=5: NOAH: head_num=5 does not divide")
    assert finished(Path("pair")) == {"1"}
    assert "1 of 2 jobs finished, 1 impossible" in answer.out


def test_each_job_gets_gpus_of_its_own(noah: Noah, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_gpus", lambda: ["3", "5"])
    answer = noah("train", "-m", *QUICK, "trainer.accelerator=cpu", "seed=0,1,2", "sweep.dir=queue")
    assert answer.status == 0, answer.err
    assert lines(answer, "started")[:2] == ["0  seed=0  on GPU 3", "1  seed=1  on GPU 5"]
    assert finished(Path("queue")) == {"0", "1", "2"}
    assert sorted(line.split()[0] for line in lines(answer, "finished")) == ["0", "1", "2"]


def test_the_latest_sweep_of_the_command_is_resumed(noah: Noah) -> None:
    for day in ("2026-01-01", "2026-01-02"):
        folder = Path("runs") / day / "12-00-00_sweep"
        folder.mkdir(parents=True)
        (folder / "sweep.json").write_text(json.dumps({"command": [*QUICK, "seed=0"]}))
    answer = noah("train", "-m", *QUICK, "seed=0", "sweep.resume=true")
    assert answer.status == 0
    assert finished(Path("runs/2026-01-02/12-00-00_sweep")) == {"0"}
    assert not finished(Path("runs/2026-01-01/12-00-00_sweep"))


# --- killed


def marked_processes(marker: str) -> list[int]:
    """Processes that have ``marker`` in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if marker.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def wait_until(true: Callable[[], bool], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "took too long"
        time.sleep(0.02)


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
def test_a_killed_sweep_leaves_no_process_and_goes_on_where_it_was(noah: Noah, tmp_path: Path) -> None:
    marker = f"NOAH_TEST_{os.getpid()}_{tmp_path.name}"
    command = ["train", "-m", *QUICK, "data.train_images=320", "seed=0,1,2,3,4,5", "sweep.dir=six"]
    program = [sys.executable, "-m", "noah_lightning", *command]
    killed = subprocess.Popen(program, env={**os.environ, marker: "1"}, stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: Path("six/4/config.yaml").exists())
    finally:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    wait_until(lambda: not marked_processes(marker))
    before = {n: Path(f"six/{n}/results.json").stat().st_mtime_ns for n in range(4)}
    assert finished(Path("six")) == {"0", "1", "2", "3"}

    answer = noah(*command, "sweep.resume=true")
    assert answer.status == 0, answer.err
    assert [line.split()[0] for line in lines(answer, "started")] == ["4", "5"]
    assert finished(Path("six")) == {str(n) for n in range(6)}
    assert before == {n: Path(f"six/{n}/results.json").stat().st_mtime_ns for n in range(4)}
    assert Path("six/.unfinished/4-1/config.yaml").exists(), "nothing is lost"


def test_a_resolved_configuration_is_all_a_job_needs() -> None:
    jobs = plan.expand([*QUICK, "seed=0,1"])
    assert jobs[1].config == compose_config([*QUICK, "seed=1"])
