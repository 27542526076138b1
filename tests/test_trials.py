"""A search: Optuna suggests what to try, a sweep runs it; interrupted, it resumes as if it had not been."""

import math
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cloudpickle
import optuna
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from conftest import TINY, Answer, call_noah
from noah_lightning.config.results import Results
from noah_lightning.errors import ConfigError, RunFailed
from noah_lightning.run_dir import RunDir
from noah_lightning.sweep import launchers
from noah_lightning.sweep.search import _study, distribution
from test_sweep import finished, lines, marked_processes, wait_until

Noah = Callable[..., Answer]
QUICK = [*TINY, "head=noah", "data.train_images=32", "data.val_images=20", "recipe.batch_size=16"]
ONE_EPOCH = [*QUICK, "trainer.max_epochs=1"]
RATE = "recipe.optimizer.lr=tag(log,interval(0.001,1))"
BOTH = [*QUICK, "head.head_num=1,2,4", RATE]
Fake = Callable[[DictConfig], float | str]


def top1_of(config: DictConfig) -> float:
    """Highest at 4 blocks and a rate of 0.05."""
    return 90 - 5 * abs(config.head.head_num - 4) - 20 * abs(math.log10(config.recipe.optimizer.lr / 0.05))


def pretended(patch: pytest.MonkeyPatch, fake: Fake) -> list[DictConfig]:
    """Let jobs end at once with the top-1 that a function gives, or with its error's line; returns those started."""
    started: list[DictConfig] = []

    def start(payload: bytes, gpus: list[str], quiet: bool) -> tuple[Any, Connection]:
        composed = cloudpickle.loads(payload)[2]
        started.append(composed)
        outcome = fake(composed)
        if not isinstance(outcome, str):
            run_dir = Path(composed.hydra.sweep.dir, str(composed.hydra.job.num))
            run_dir.mkdir()
            counts = {"correct": round(1000 * outcome), "correct_top5": 0, "images": 100_000}
            whole = {"parameters": 1, "epochs": 1, "best_epoch": 1, **counts}
            RunDir(run_dir).write_results(Results(**whole, train_seconds=1.0, images_per_second=1.0))
            outcome = RunDir(run_dir).results().top1
        receiver, sender = multiprocessing.Pipe(duplex=False)
        sender.send(RunFailed(outcome) if isinstance(outcome, str) else outcome)
        return SimpleNamespace(join=lambda: None), receiver

    patch.setattr(launchers, "start", start)
    return started


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[[Fake], list[DictConfig]]:
    return lambda fake: pretended(monkeypatch, fake)


def trials(folder: str) -> list[optuna.trial.FrozenTrial]:
    return _study(Path(folder)).get_trials()


def asked(folder: str) -> list[dict[str, Any]]:
    return [trial.params for trial in trials(folder)]


# --- what may be chosen


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("head.head_num=1,2,4,2", CategoricalDistribution(("1", "2", "4"))),
        ("seed=range(0,3)", CategoricalDistribution(("0", "1", "2"))),
        ("model=choice(resnet18,resnet50)", CategoricalDistribution(("resnet18", "resnet50"))),
        ("recipe.ema=interval(0,0.5)", FloatDistribution(0.0, 0.5)),
        ("recipe.batch_size=tag(log,interval(16,64))", IntDistribution(16, 64, log=True)),
    ],
)
def test_choices_have_no_order_and_intervals_are_numbers(word: str, expected: BaseDistribution) -> None:
    [override] = OverridesParser.create().parse_overrides([word])
    assert distribution(override.get_key_element(), override) == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["seed=0"], "sweep.trials needs a setting to search, such as head.head_num=1,2,4 or KEY=interval(0,1)"),
        (["recipe.ema=interval(0.5,0.1)"], "recipe.ema=interval(0.5,0.1) must increase"),
        (["recipe.ema=interval(0.5,0.5)"], "recipe.ema=interval(0.5,0.5) must increase"),
        (
            ["recipe.ema=tag(log,interval(0,1))"],
            "recipe.ema=interval(0,1) must increase and be above 0, because of its tag log",
        ),
        (["recipe.ema=tag(lg,interval(0,1))"], "recipe.ema: 'lg' is not a tag of an interval; the only one is log"),
        (["head.hed_num=1,2"], "unknown setting 'head.hed_num'; did you mean"),
        (["seed=0,1", "model.name=test_resnet,rsnet"], "rsnet"),
        (
            ["recipe.batch_size=interval(16,31)", "trainer.accumulate_grad_batches=4"],
            "recipe.batch_size=31 cannot be",
        ),
        (["recipe.epochs=3,0"], "recipe.epochs=0 must be a"),
        (["recipe.ema=interval(0.9,1.5)"], "recipe.ema=1.5 must be a number above 0 and below 1"),
        (["recipe.optimizer.lr=interval(-0.1,0.1)"], "recipe.optimizer.lr=-0.1 must be"),
    ],
)
def test_every_value_is_checked_before_anything_is_trained(words: list[str], message: str, noah: Noah) -> None:
    answer = noah("train", "-m", *QUICK, *words, "sweep.trials=3")
    assert answer.status == 2
    assert message in answer.err
    assert answer.err.count("\n") == 1
    assert not Path("runs").exists()


def test_a_search_needs_optuna(noah: Noah, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    answer = noah("train", "-m", *BOTH, "sweep.trials=3")
    assert (answer.status, answer.err) == (
        2,
        "noah: sweep.trials needs Optuna: pip install 'noah-lightning[search]'\n",
    )
    assert not Path("runs").exists()


# --- what is asked


@dataclass
class TwoParts:
    """A search of 12 trials that was resumed with 24, half of whose choices of a head are impossible."""

    folder: str
    first: Answer
    second: Answer
    started: list[DictConfig]
    after_first: list[dict[str, Any]]  # what had been asked

    @property
    def odd(self) -> list[int]:
        return [number for number, values in enumerate(asked(self.folder)) if values["head.head_num"] in "57"]


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> TwoParts:
    folder = str(tmp_path_factory.mktemp("search") / "s")
    command = ["train", "-m", *QUICK, "head.head_num=2,4,5,7", RATE, f"sweep.dir={folder}"]
    with pytest.MonkeyPatch.context() as patch:
        started = pretended(patch, top1_of)
        first = call_noah(*command, "sweep.trials=12")
        after_first = asked(folder)
        return TwoParts(
            folder, first, call_noah(*command, "sweep.trials=24", "sweep.resume=true"), started, after_first
        )


def test_trials_are_what_tpe_asks_for(search: TwoParts) -> None:
    """Also in two parts, and beyond the ten trials at the beginning, which are random."""
    assert (search.first.status, search.second.status) == (0, 0), search.first.err + search.second.err
    study = optuna.create_study(direction="maximize")
    space = {
        "head.head_num": optuna.distributions.CategoricalDistribution(("2", "4", "5", "7")),
        "recipe.optimizer.lr": optuna.distributions.FloatDistribution(0.001, 1, log=True),
    }
    assert asked(search.folder)[:12] == search.after_first
    for number, values in enumerate(asked(search.folder)):
        study.sampler = optuna.samplers.TPESampler(seed=number, constant_liar=True)
        trial = study.ask(space)
        assert trial.params == values
        if number in search.odd:
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, RunDir(Path(search.folder, str(number))).results().top1)
    best, rate = study.best_trial, study.best_params["recipe.optimizer.lr"]
    assert lines(search.second, "best") == [
        f"{best.number}  head.head_num=4 recipe.optimizer.lr={rate:.4g}: {best.value:.2f} %"
    ]
    trained = [values for number, values in enumerate(asked(search.folder)) if number not in search.odd]
    rates = [config.recipe.optimizer.lr for config in search.started]
    assert rates == [values["recipe.optimizer.lr"] for values in trained], "with all their digits"


def test_an_impossible_head_is_reported_counts_and_is_avoided(search: TwoParts) -> None:
    odd = search.odd
    early = [number for number in odd if number < 12]
    assert [int(line.split()[0]) for line in lines(search.first, "skipped")] == early
    assert [int(line.split()[0]) for line in lines(search.second, "skipped")] == odd
    assert odd == [trial.number for trial in trials(search.folder) if trial.state == TrialState.PRUNED]
    assert {config.head.head_num for config in search.started} == {2, 4}
    assert f"{12 - len(early)} of 12 jobs finished, {len(early)} impossible; noah compare" in search.first.out
    before = f"{12 - len(early)} of them before"
    assert f"{24 - len(odd)} of 24 jobs finished, {before}, {len(odd)} impossible" in search.second.out
    late = sum(number >= 10 for number in odd)
    assert late <= 4, "of fourteen, although every other choice is impossible"


def test_nothing_but_impossible_heads_is_a_mistake(noah: Noah) -> None:
    answer = noah("train", "-m", *QUICK, "head.head_num=5,7", "sweep.trials=2")
    assert answer.status == 2
    assert answer.err.startswith("noah: no job of the sweep is possible: head.head_num=")
    assert answer.err.count("\n") == 1


def test_settings_that_were_trained_are_not_trained_again(
    noah: Noah, pretend: Callable[[Fake], list[DictConfig]]
) -> None:
    started = pretend(lambda config: 10.0 * config.head.head_num)
    answer = noah("train", "-m", *QUICK, "head.head_num=1,2,4", "sweep.trials=12", "sweep.dir=s")
    assert answer.status == 0, answer.err
    assert sorted(config.head.head_num for config in started) == [1, 2, 4]
    assert sum("as job" in line for line in lines(answer, "finished")) == 9
    first = [values["head.head_num"] for values in asked("s")].index("4")
    assert lines(answer, "best") == [f"{first}  head.head_num=4: 40.00 %"]


def test_values_that_do_not_fit_together_fail_and_the_search_goes_on(
    noah: Noah, pretend: Callable[[Fake], list[DictConfig]]
) -> None:
    """Each fits beside the first of the others, so nothing shows it before."""
    started = pretend(lambda config: 50.0)
    words = ["recipe.batch_size=12,16", "trainer.devices=1,3", "trainer.accelerator=cpu"]
    answer = noah("train", "-m", *QUICK, *words, RATE, "sweep.trials=6", "sweep.dir=s")
    odd = [number for number, values in enumerate(asked("s")) if list(values.values())[:2] == ["16", "3"]]
    assert odd
    assert answer.status == 1
    told = [line for line in answer.err.splitlines() if line.startswith("failed")]
    assert [int(line.split()[1]) for line in told] == 2 * odd
    assert told[0].endswith("recipe.batch_size=16 cannot be divided among 3 processes; use 15 or 18")
    assert len(started) == 6 - len(odd)


# --- interrupted


def test_a_failed_job_is_told_and_the_search_goes_on(noah: Noah, pretend: Callable[[Fake], list[DictConfig]]) -> None:
    started = pretend(lambda config: "on purpose" if config.head.head_num == 2 else top1_of(config))
    command = ["train", "-m", *BOTH, "sweep.trials=8", "sweep.dir=s"]
    answer = noah(*command)
    assert answer.status == 1
    failed = [str(number) for number, values in enumerate(asked("s")) if values["head.head_num"] == "2"]
    assert 0 < len(failed) < 8
    assert finished(Path("s")) == {str(number) for number in range(8)} - set(failed)
    assert len(started) == 8
    told = [line for line in answer.err.splitlines() if line.startswith("failed")]
    assert [line.split()[1] for line in told] == 2 * failed
    assert answer.err.splitlines()[-1].startswith(f"noah: {len(failed)} of 8 jobs failed; sweep.resume=true")

    before = asked("s")
    started = pretend(top1_of)
    answer = noah(*command, "sweep.resume=true")
    assert answer.status == 0, answer.err
    assert [line.split()[0] for line in lines(answer, "started")] == failed
    assert [config.recipe.optimizer.lr for config in started] == [
        before[int(number)]["recipe.optimizer.lr"] for number in failed
    ], "with their own values"
    assert asked("s") == before
    assert f"8 of 8 jobs finished, {8 - len(failed)} of them before" in answer.out


def test_a_grid_is_not_resumed_as_a_search(noah: Noah, pretend: Callable[[Fake], list[DictConfig]]) -> None:
    pretend(lambda config: 50.0)
    command = ["train", "-m", *QUICK, "head.head_num=1,2"]
    assert noah(*command).status == 0
    answer = noah(*command, "sweep.trials=2", "sweep.resume=true")
    assert answer.err == "noah: found no search with this command in runs/; remove sweep.resume to start one\n"
    assert noah(*command, "sweep.trials=2", "sweep.dir=s").status == 0
    answer = noah(*command, "sweep.dir=s", "sweep.resume=true")
    assert answer.err == "noah: s is a search: add sweep.trials=N\n"


@pytest.mark.parametrize("line", ["{", '{"op_code": 0}', "[]"])
def test_a_journal_that_is_not_optunas_is_one_line(tmp_path: Path, line: str) -> None:
    (tmp_path / "trials.log").write_text(f"{line}\n{line}\n")
    with pytest.raises(ConfigError, match=r"trials\.log is not a journal of Optuna: "):
        _study(tmp_path)


def test_jobs_at_a_time_are_asked_for_together(noah: Noah, pretend: Callable[[Fake], list[DictConfig]]) -> None:
    pretend(top1_of)
    answer = noah("train", "-m", *BOTH, "sweep.trials=5", "sweep.jobs=3", "sweep.dir=s")
    assert answer.status == 0, answer.err
    assert [line.split()[0] for line in answer.out.splitlines() if line][1:4] == ["started"] * 3
    assert finished(Path("s")) == set("01234")
    assert "5 of 5 jobs finished; noah compare s" in answer.out


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
@pytest.mark.slow
def test_a_killed_search_goes_on_with_what_it_was_at(noah: Noah, tmp_path: Path) -> None:
    """With real training."""
    marker = f"NOAH_TEST_{os.getpid()}_{tmp_path.name}"
    command = ["train", "-m", *ONE_EPOCH, "data.train_images=320", "head.head_num=1,2,4", RATE, "sweep.dir=s"]
    command += ["sweep.trials=3", "checkpoint.every_n_steps=1"]
    program = [sys.executable, "-m", "noah_lightning", *command]
    killed = subprocess.Popen(program, env={**os.environ, marker: "1"}, stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: any(Path("s/1/checkpoints").glob("step-*.ckpt")))
    finally:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    wait_until(lambda: not marked_processes(marker))
    before = asked("s")
    assert (finished(Path("s")), len(before)) == ({"0"}, 2)

    answer = noah(*command, "sweep.resume=true")
    assert answer.status == 0, answer.err
    assert lines(answer, "resumed")[0].startswith("1  head.head_num=")
    assert [line.split()[0] for line in lines(answer, "started")] == ["2"]
    assert asked("s")[:2] == before
    assert finished(Path("s")) == {"0", "1", "2"}
    for number, values in enumerate(asked("s")):
        config = RunDir(Path("s", str(number))).config()
        assert (str(config.head.head_num), config.recipe.optimizer.lr) == tuple(values.values())
    top1 = [RunDir(Path("s", str(number))).results().top1 for number in range(3)]
    assert lines(answer, "best")[0].startswith(f"{top1.index(max(top1))}  head.head_num=")
    assert not Path("s/.unfinished").exists()
