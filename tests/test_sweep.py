"""Sweeps: planned before anything is trained, unharmed by a failure, resumed where they were interrupted."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import yaml
from omegaconf import OmegaConf

import faults
from conftest import TINY, Answer, call_noah
from noah_lightning.config.compose import compose_config
from noah_lightning.errors import ConfigError, UserError
from noah_lightning.run_dir import RunDir
from noah_lightning.sweep import job, launchers
from noah_lightning.sweep.folder import Report

Noah = Callable[..., Answer]
QUICK = [*TINY, "data.train_images=32", "data.val_images=20", "recipe.batch_size=16", "trainer.max_epochs=1"]
ONE_JOB = [*QUICK, "data.train_images=64", "checkpoint.every_n_steps=1", "seed=0"]
PRESETS = sorted(path.stem for path in (Path(__file__).parents[1] / "conf" / "sweep").glob("*.yaml"))


def lines(answer: Answer, word: str) -> list[str]:
    """The lines that begin with ``word``, without it."""
    return [line.removeprefix(word).strip() for line in answer.out.splitlines() if line.startswith(word)]


def finished(folder: Path) -> set[str]:
    return {path.parent.name for path in folder.glob("*/results.json")}


def planned(*words: str) -> dict[str, Any]:
    """The configurations of a sweep's jobs by their names, as ``-m --cfg job`` prints them."""
    answer = call_noah("train", "-m", *words, "--cfg", "job")
    assert answer.status == 0, answer.err
    names = [line.removeprefix("--- # ") for line in answer.out.splitlines() if line.startswith("---")]
    return dict(zip(names, yaml.safe_load_all(answer.out), strict=True))


# --- the plan


def test_every_combination_is_a_job(noah: Noah) -> None:
    mean = "data.mean=[0,0.5,1]"
    jobs = planned("+experiment=demo", "head.head_num=1,2", "seed=choice(3,4,5)", mean, "sweep.jobs=2")
    assert list(jobs) == [
        "0  head.head_num=1 seed=3",
        "1  head.head_num=1 seed=4",
        "2  head.head_num=1 seed=5",
        "3  head.head_num=2 seed=3",
        "4  head.head_num=2 seed=4",
        "5  head.head_num=2 seed=5",
    ]
    config = compose_config(["experiment=demo", "head.head_num=2", "seed=5", mean])
    assert jobs["5  head.head_num=2 seed=5"] == config.model_dump(), "a run has nothing of its sweep"
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_a_sweep_of_the_papers_rows(preset: str) -> None:
    jobs = planned(f"sweep={preset}", "model=resnet18", "data.root=there")
    assert len(jobs) > 1
    assert len({str(config) for config in jobs.values()}) == len(jobs), "each job has settings of its own"


def test_the_command_line_wins_over_the_preset() -> None:
    jobs = planned("sweep=heads", "seed=7", "data.root=there")
    assert {(config["head"]["name"], config["seed"]) for config in jobs.values()} == {("gap", 7), ("noah", 7)}
    assert list(jobs) == ["0  head=gap", "1  head=noah"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sweep=hed"], "sweep has no option 'hed'; did you mean heads"),
        (["sweep.rsume=true"], "unknown setting 'sweep.rsume'; did you mean sweep.resume"),
        (["sweep.resume=maybe"], "sweep.resume='maybe' must be true or false"),
        (["sweep.jobs=0"], "sweep.jobs=0 must be an integer of at least 1"),
        (["sweep.jobs=two"], "sweep.jobs='two' must be an integer of at least 1"),
        (["sweep.trials=0"], "sweep.trials=0 must be an integer of at least 1"),
        (["sweep.trials=1.5"], "sweep.trials=1.5 must be an integer of at least 1"),
        (["sweep.trial=3"], "unknown setting 'sweep.trial'; did you mean sweep.trials"),
        (["head.hed_num=1,2"], "unknown setting 'head.hed_num'"),
        (["seed=interval(0,5)"], "seed=interval(…) cannot be enumerated; add sweep.trials=N to search it"),
        (["model=resnet18,resnet999"], "model has no option 'resnet999'"),
        (["head=noah", "head.head_num=5,7"], "no job of the sweep is possible: NOAH: head_num=5 does not divide"),
        (["seed=0,1", "sweep.resume=true"], "found no sweep with this command in runs/"),
        (["recipe.epochs=3,0"], "recipe.epochs=0 must be a"),
        (["head.head_num=1,0"], "head.head_num=0 must be a"),
        (["recipe.optimizer.lr=0.1,-1"], "recipe.optimizer.lr=-1 must be a number of at least 0"),
        (["recipe.schedule.warmup_epochs=0,9"], "recipe.schedule.warmup_epochs=9 must be at most the 3 epochs"),
        (["trainer.devices=[2,3]", "seed=0,1"], "a sweep assigns the GPUs: set trainer.devices to their number"),
        (["sweep.dir=/dev/null", "seed=0,1"], "/dev/null cannot be written ("),
        (["data.num_fragments=0,-1"], "data.num_fragments=-1 must be a"),
        (
            ["hydra.launcher.partition=gpu"],
            "hydra/launcher=local has no setting 'partition'; choose a launcher",
        ),
        (["hydra/launcher=slrm"], "hydra/launcher has no option 'slrm'; did you mean slurm"),
        (["hydra.searchpath=[file:///nowhere]"], "path=/nowhere is not available"),
        (["--config-dir=nowhere"], "nowhere' not found"),
        (["--cfg=hydra"], "a sweep only supports --cfg job; use other --cfg options without -m"),
        (["--cfg=job", "sweep.trials=3", "seed=0,1"], "the jobs of a search are not known in advance"),
    ],
)
def test_a_mistake_in_the_command_trains_nothing(words: list[str], message: str, noah: Noah) -> None:
    answer = noah("train", "-m", *QUICK, *words)
    assert answer.status == 2
    assert message in answer.err
    assert answer.err.count("\n") == 1
    assert not Path("runs").exists()


def test_help_is_help_with_a_sweep_too(noah: Noah) -> None:
    assert noah("train", "-m", "--help").out == noah("train", "--help").out != ""


def test_missing_data_trains_nothing(noah: Noah) -> None:
    answer = noah("train", "-m", "model=resnet18", "head=gap,noah")
    assert answer.status == 2
    assert "data.root" in answer.err
    assert answer.err.count("\n") == 1
    assert not Path("runs").exists()


@pytest.mark.parametrize("word", ["sweep.resume=true", "sweep=heads", "hydra/launcher=slurm", "hydra.sweep.dir=x"])
def test_a_setting_of_sweeps_needs_a_sweep(noah: Noah, word: str) -> None:
    answer = noah("train", *QUICK, word)
    assert (answer.status, answer.err) == (2, "noah: sweep… and hydra/launcher are for sweeps: add -m\n")
    assert not Path("runs").exists()


def test_a_sweep_does_not_run_under_torchrun(noah: Noah, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    assert "run it without torchrun or srun" in noah("train", "-m", *QUICK, "seed=0,1").err


# --- the course


@pytest.fixture(scope="module")
def with_failures(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Answer, Answer]:
    """Six jobs on two GPUs, of which two fail and three are impossible, and again with sweep.resume=true on none."""
    folder = tmp_path_factory.mktemp("sweep")
    words = ["data.train_images=48", "checkpoint.every_n_steps=1", "trainer.accelerator=cpu", "sweep.dir=six"]
    rates = "recipe.optimizer.lr=1e+30,0.001,1e+31"  # the losses of the first and the last are not finite
    command = ["train", "-m", *QUICK, "head=noah", "head.head_num=2,5", rates, *words]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(launchers, "_gpus", lambda: ["3", "5"])
        first = call_noah(*command)
        patch.setattr(launchers, "_gpus", list)
        return folder / "six", first, call_noah(*command, "sweep.resume=true")


FAILING = ["0  head.head_num=2 recipe.optimizer.lr=1e+30", "2  head.head_num=2 recipe.optimizer.lr=1e+31"]


def test_each_job_gets_gpus_of_its_own(with_failures: tuple[Path, Answer, Answer]) -> None:
    _, first, _ = with_failures
    started = lines(first, "started")
    assert started[:2] == [f"{FAILING[0]}  on GPU 3", "1  head.head_num=2 recipe.optimizer.lr=0.001  on GPU 5"]
    assert started[2] in (f"{FAILING[1]}  on GPU 3", f"{FAILING[1]}  on GPU 5"), "when one of them was free again"
    assert len(started) == 3


def test_a_failure_leaves_the_other_jobs_alone(with_failures: tuple[Path, Answer, Answer]) -> None:
    folder, first, _ = with_failures
    assert finished(folder) == {"1"}
    assert first.status == 1
    assert [line.split()[0] for line in lines(first, "finished")] == ["1"]


def test_failures_are_told_at_once_and_in_the_end(with_failures: tuple[Path, Answer, Answer]) -> None:
    _, first, _ = with_failures
    told = [line for line in first.err.splitlines() if line.startswith("failed")]
    names = [line.split(": ")[0].removeprefix("failed   ") for line in told]
    assert sorted(names[:2]) == names[2:] == FAILING
    assert all("try a smaller recipe.optimizer.lr" in line for line in told)
    assert "1 of 6 jobs finished, 3 impossible, 2 failed" in first.out
    assert first.err.splitlines()[-1] == "noah: 2 of 6 jobs failed; sweep.resume=true resumes them"


def test_impossible_jobs_are_told_and_skipped(with_failures: tuple[Path, Answer, Answer]) -> None:
    for answer in with_failures[1:]:
        skipped = lines(answer, "skipped")
        assert [line.split()[0] for line in skipped] == ["3", "4", "5"]
        assert skipped[1].startswith("4  head.head_num=5 recipe.optimizer.lr=0.001: NOAH: head_num=5 does not divide")


def test_each_job_has_its_own_settings(with_failures: tuple[Path, Answer, Answer]) -> None:
    folder, _, _ = with_failures
    assert [RunDir(folder / n).config().recipe.optimizer.lr for n in "012"] == [1e30, 0.001, 1e31]


def test_resuming_goes_on_only_with_what_failed(with_failures: tuple[Path, Answer, Answer]) -> None:
    folder, _, again = with_failures
    assert lines(again, "started") == []
    assert lines(again, "resumed") == [f"{name}  after 2 steps" for name in FAILING]
    assert "1 of 6 jobs finished, 1 of them before, 3 impossible, 2 failed" in again.out
    assert again.status == 1
    assert not (folder / ".unfinished").exists()


def test_a_sweep_never_overwrites_another(with_failures: tuple[Path, Answer, Answer], noah: Noah) -> None:
    answer = noah("train", "-m", *QUICK, "seed=0,1", f"sweep.dir={with_failures[0]}")
    assert answer.status == 2
    assert "already contains a sweep; sweep.resume=true resumes it" in answer.err


def test_many_finished_jobs_are_one_short_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Report(tmp_path, 10).finished_before([0, 1, 2, 5, 7, 8])
    assert capsys.readouterr().out == "finished already: 0-2, 5, 7-8\n"


def test_the_latest_sweep_of_the_command_is_resumed(noah: Noah) -> None:
    for day in ("2026-01-01", "2026-01-02"):
        run_dir = Path("runs") / day / "12-00-00_sweep" / "0"
        run_dir.mkdir(parents=True)
        (run_dir / "results.json").touch()  # as if it had finished
        (run_dir.parent / "sweep.json").write_text(json.dumps({"command": [*QUICK, "seed=0"]}))
    answer = noah("train", "-m", *QUICK, "seed=0", "sweep.resume=true")
    assert answer.status == 0
    assert lines(answer, "sweep")[0] == "1 job, runs/2026-01-02/12-00-00_sweep"
    assert "finished already: 0" in answer.out


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


def wait_until(true: Callable[[], bool], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "took too long"
        time.sleep(0.02)


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
def test_a_killed_sweep_leaves_no_process_and_goes_on_to_the_bit(noah: Noah, tmp_path: Path) -> None:
    marker = f"NOAH_TEST_{os.getpid()}_{tmp_path.name}"
    words = ["head=noah", "trainer.log_every_n_steps=1", "checkpoint.every_n_steps=5"]
    command = ["train", "-m", *QUICK, *words, "data.train_images=16,320"]
    program = [sys.executable, "-m", "noah_lightning", *command, "sweep.dir=killed"]
    killed = subprocess.Popen(program, env={**os.environ, marker: "1"}, stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: any(Path("killed/1/checkpoints").glob("step-*.ckpt")))
    finally:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    wait_until(lambda: not marked_processes(marker))
    assert finished(Path("killed")) == {"0"}
    before = Path("killed/0/results.json").stat().st_mtime_ns

    answer = noah(*command, "sweep.dir=killed", "sweep.resume=true")
    assert answer.status == 0, answer.err
    assert re.fullmatch(r"1  data.train_images=320  after \d+ steps", lines(answer, "resumed")[0])
    assert lines(answer, "started") == []
    assert "2 of 2 jobs finished, 1 of them before" in answer.out
    assert Path("killed/0/results.json").stat().st_mtime_ns == before
    assert sorted(path.name for path in Path("killed").iterdir()) == ["0", "1", "sweep.json"]
    assert noah("train", *QUICK, *words, "data.train_images=320", "hydra.run.dir=alone").status == 0
    assert faults.differences(Path("alone"), Path("killed/1")) == []


@pytest.mark.slow
def test_a_sweep_that_is_stopped_saves_its_jobs(noah: Noah) -> None:
    """SIGTERM to all of its processes, as a cluster or a service manager sends it, and once more in impatience."""
    words = ["data.train_images=640", "checkpoint.every_n_steps=5", "sweep.jobs=2", "seed=0,1", "sweep.dir=two"]
    command = ["train", "-m", *QUICK, *words]
    process = subprocess.Popen(
        [sys.executable, "-m", "noah_lightning", *command],
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: all(any(Path("two", n).glob("checkpoints/step-*.ckpt")) for n in "01"))
    os.killpg(process.pid, signal.SIGTERM)
    time.sleep(0.2)
    os.killpg(process.pid, signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    # a shell says 143 of both; the latter if the second signal came when all was done
    assert process.returncode in (128 + signal.SIGTERM, -signal.SIGTERM), err
    assert out.splitlines()[-1] == "sweep    stopped; the same command with sweep.resume=true resumes it"
    assert "Traceback" not in err
    for number in "01":
        assert "stopped  by SIGTERM" in Path("two", number, "train.log").read_text()
    answer = noah(*command, "sweep.resume=true")
    assert answer.status == 0, answer.err
    assert len(lines(answer, "resumed")) == 2


# --- what becomes of a job that did not finish


@pytest.fixture(scope="module")
def broken_off(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Job 0 of ``ONE_JOB``, after two of its steps, with a checkpoint of each."""
    from noah_lightning.callbacks import checkpoints
    from noah_lightning.distributed.signals import Stopped
    from noah_lightning.sweep.job import train_in_processes

    agree = checkpoints.Checkpoints._agree

    def stop_now(self: checkpoints.Checkpoints, trainer: pl.Trainer) -> tuple[int, bool]:
        return (int(signal.SIGTERM) if trainer.global_step >= 2 else agree(self, trainer)[0]), False

    run_dir = tmp_path_factory.mktemp("sweep") / "0"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints.Checkpoints, "_agree", stop_now)
        with pytest.raises(Stopped):
            train_in_processes(compose_config(ONE_JOB), run_dir)
    return run_dir


@pytest.fixture
def job_dir(broken_off: Path, tmp_path: Path) -> Path:
    return shutil.copytree(broken_off, tmp_path / "0", symlinks=True)


def ready(job_dir: Path, *more: str) -> int:
    return job.make_ready(compose_config([*ONE_JOB, *more]), job_dir, "0  seed=0")


def kept(job_dir: Path) -> list[str]:
    """The attempts that were set aside."""
    return sorted(path.name for path in job_dir.parent.glob(".unfinished/*"))


@pytest.mark.parametrize("free", [[], ["data.num_workers=1"]])
def test_a_job_goes_on_from_its_last_checkpoint(job_dir: Path, free: list[str]) -> None:
    assert ready(job_dir, *free) == 2
    assert (job_dir / "config.yaml").exists()
    assert kept(job_dir) == []


def test_a_damaged_checkpoint_is_passed_over(job_dir: Path) -> None:
    (job_dir / "checkpoints/step-00000002.ckpt").write_text("nothing")
    assert ready(job_dir) == 1
    assert kept(job_dir) == []


def test_a_job_without_a_checkpoint_begins_in_its_folder(job_dir: Path) -> None:
    shutil.rmtree(job_dir / "checkpoints")
    assert ready(job_dir) == 0
    assert (job_dir / "config.yaml").exists()
    assert kept(job_dir) == []


def damage(job_dir: Path) -> None:
    for path in job_dir.glob("checkpoints/step-*.ckpt"):
        path.write_text("nothing")


def change(job_dir: Path) -> None:
    """As if the defaults were others when the job was begun."""
    path = job_dir / "config.yaml"
    path.write_text(path.read_text().replace("label_smoothing: 0.0", "label_smoothing: 0.1"))


def empty(job_dir: Path) -> None:
    """What a power cut may leave."""
    (job_dir / "config.yaml").write_text("")


def end_by_mistake(job_dir: Path, before: Callable[[], object] = lambda: None) -> None:
    """A job that ends in a user's mistake; ``before`` that it does something."""

    def train(*_: object, **__: object) -> None:
        before()
        raise UserError("3.jpg cannot be read; data.max_unreadable=1 lets it")

    cfg = OmegaConf.create({**compose_config(ONE_JOB).model_dump(), "sweep": {"resume": False}})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "train_in_processes", train)
        with pytest.raises(UserError):
            job._train_in_sweep(cfg, job_dir)


def fail_by_mistake(job_dir: Path) -> None:
    """As if the run had begun and ended in this attempt."""
    checkpoints = (job_dir / "checkpoints").rename(job_dir / "later")
    end_by_mistake(job_dir, lambda: checkpoints.rename(job_dir / "checkpoints"))


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (damage, "no checkpoint in {0}/checkpoints can be read"),
        (change, "{0} was started with recipe.label_smoothing=0.1, not 0.0"),
        (empty, "{0}/config.yaml is not a run's configuration: "),
        (Path.unlink, "{0} is not a run directory: it has no config.yaml"),
        (fail_by_mistake, "3.jpg cannot be read"),
    ],
)
def test_a_job_that_cannot_go_on_is_set_aside_and_begins_anew(
    job_dir: Path, spoil: Callable[[Path], None], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(job_dir / "config.yaml" if spoil is Path.unlink else job_dir)
    assert ready(job_dir) == 0
    assert not job_dir.exists()
    assert kept(job_dir) == ["0-1"]
    told = capsys.readouterr().out
    assert told.startswith("restart  0  seed=0: " + why.format(job_dir))
    assert told.endswith(f"; the attempt is kept in {job_dir.parent}/.unfinished/0-1\n")
    assert told.count("\n") == 1


def test_a_job_that_had_gone_on_is_not_thrown_away_for_a_mistake(job_dir: Path) -> None:
    """Its data may be missing on this machine only."""
    end_by_mistake(job_dir)
    assert ready(job_dir) == 2


def test_a_mistake_before_the_run_leaves_no_folder(tmp_path: Path) -> None:
    end_by_mistake(tmp_path / "0")
    assert not (tmp_path / "0").exists()


def test_a_folder_in_use_is_left_alone(job_dir: Path) -> None:
    change(job_dir)
    with RunDir(job_dir).locked():
        assert ready(job_dir) == 0
    assert (job_dir / "config.yaml").exists()
    assert kept(job_dir) == []


def test_what_has_finished_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where another process finishes it after this one has looked."""
    from noah_lightning.sweep.job import train_in_processes

    config = compose_config(ONE_JOB)
    run_dir = tmp_path / "0"
    train_in_processes(config, run_dir)
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=r"has finished; noah evaluate"):
        train_in_processes(config, run_dir, resume=True)
    cfg = OmegaConf.create({**config.model_dump(), "sweep": {"resume": True}})
    job._train_in_sweep(cfg, run_dir)
    looks = iter([False, True])
    monkeypatch.setattr(job, "has_finished", lambda _: next(looks))
    job._train_in_sweep(cfg, run_dir)
    assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == before


def test_the_first_free_place_is_taken_for_an_attempt(job_dir: Path) -> None:
    """Somebody short of disk may have removed an older one."""
    (job_dir.parent / ".unfinished" / "0-2").mkdir(parents=True)
    assert job._set_aside(job_dir).name == "0-1"
    job_dir.mkdir()
    assert job._set_aside(job_dir).name == "0-3"


def test_an_attempt_that_cannot_be_kept_is_one_line(job_dir: Path) -> None:
    (job_dir.parent / ".unfinished").write_text("a file")
    with pytest.raises(ConfigError, match=r"\.unfinished cannot be written"):
        job._set_aside(job_dir)
