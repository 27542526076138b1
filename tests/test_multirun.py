"""Hydra's multirun as Hydra's users know it, with config folders and plugins of other packages.

Most commands run in this process, because importing everything again takes seconds.
"""

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from copy import deepcopy
from functools import partial
from importlib import import_module
from io import StringIO
from pathlib import Path

import pytest
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins

from conftest import Answer, call_noah
from noah_lightning.run_dir import RunDir
from test_sweep import QUICK, finished

ROOT = Path(__file__).parents[1]
TRAIN_PY = [sys.executable, str(ROOT / "train.py")]

SWEEPER = """
from dataclasses import dataclass
from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper

class Climber(Sweeper):
    '''Tries two seeds and keeps the one whose task returned more.'''

    def setup(self, *, hydra_context, task_function, config):
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            config=config, hydra_context=hydra_context, task_function=task_function
        )

    def sweep(self, arguments):
        values = [
            self.launcher.launch([[*arguments, f"seed={seed}"]], initial_job_idx=number)[0].return_value
            for number, seed in enumerate((3, 4))
        ]
        Path(self.config.hydra.sweep.dir, "values.txt").write_text(repr(values))

@dataclass
class Conf:
    _target_: str = "hydra_plugins.climber.Climber"

ConfigStore.instance().store(group="hydra/sweeper", name="climber", node=Conf)
"""


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command in the current folder."""
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300)


def call_train_py(*argv: str) -> Answer:
    """``python train.py <argv>`` in this process and the current folder."""
    out, err = StringIO(), StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", [str(ROOT / "train.py"), *argv])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(sys.argv[0], run_name="__main__")
    assert isinstance(end.value.code, int)
    return Answer(end.value.code, out.getvalue(), err.getvalue())


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder of configurations, and an empty working folder."""
    for group, name, text in (
        ("experiment", "mine", "head: {head_num: 2}"),
        ("sweep", "processes", "hydra: {sweeper: {params: {trainer.devices: '1,2'}}}"),
    ):
        (tmp_path / "own" / group).mkdir(parents=True)
        (tmp_path / "own" / group / f"{name}.yaml").write_text(f"# @package _global_\n{text}\n")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "own"


@pytest.mark.slow
def test_joblib_trains_jobs_of_one_and_two_processes_with_a_config_folder_of_the_users(own: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    words = [word for word in QUICK if word != "experiment=demo"]
    words += ["data=digits", "recipe=digits", "+experiment=mine", "sweep=processes", "hydra.sweep.dir=pair"]
    words += ["trainer=ddp", "trainer.accelerator=cpu", "hydra/launcher=joblib"]
    answer = call_noah("train", "-m", "--config-dir", str(own), *words)
    assert answer.status == 0, answer.err
    assert finished(Path("pair")) == {"0", "1"}
    assert [RunDir(Path("pair", n)).config().trainer.devices for n in "01"] == [1, 2]
    assert {RunDir(Path("pair", n)).config().head.head_num for n in "01"} == {2}
    assert "2 of 2 jobs finished; noah compare pair" in answer.out


def test_jobs_resume_by_themselves_under_any_launcher(own: Path) -> None:
    command = ["train", "-m", *QUICK, "hydra/launcher=basic", "seed=0,1", "hydra.sweep.dir=pair"]
    assert call_noah(*command).status == 0
    Path("pair/1/results.json").unlink()  # as if it had been killed after its last step
    Path("pair/1/checkpoints/last.ckpt").rename("pair/1/checkpoints/step-00000002.ckpt")
    answer = call_noah(*command, "sweep.resume=true")
    assert answer.status == 0, answer.err
    assert "finished already: 0\n" in answer.out
    assert "resumed  after 2 steps" in answer.out
    assert finished(Path("pair")) == {"0", "1"}
    assert call_noah("compare", "pair").status == 0


def test_submitit_and_params_of_the_command_line(own: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    words = ["hydra/launcher=submitit_local", "+hydra.sweeper.params.seed='3,4'", "head.head_num=2,5"]
    answer = call_train_py("-m", *QUICK, f"hydra.searchpath=[file://{own}]", *words, "sweep.dir=four")
    assert answer.status == 0, answer.err
    assert finished(Path("four")) == {"0", "2"}, "those with 5 blocks are skipped"
    assert [RunDir(Path("four", n)).config().seed for n in "02"] == [3, 4]


def test_a_sweeper_of_another_package_gets_the_top1(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (own / "hydra_plugins").mkdir()
    (own / "hydra_plugins" / "climber.py").write_text(SWEEPER)
    monkeypatch.syspath_prepend(str(own))
    for registry in (Plugins.instance(), ConfigStore.instance()):  # pickled into the jobs of later tests
        monkeypatch.setattr(registry, "__dict__", deepcopy(vars(registry)))
    Plugins.instance().register(import_module("hydra_plugins.climber").Climber)  # Hydra looks for plugins once
    words = ["hydra/sweeper=climber", f"hydra.searchpath=[file://{own}]", "+experiment=mine", "data=digits"]
    words += [word for word in QUICK if word != "experiment=demo"]
    answer = call_train_py("-m", *words, "recipe=digits", "hydra.sweep.dir=climb")
    assert answer.status == 0, answer.err
    values = json.loads(Path("climb/values.txt").read_text())
    assert values == [RunDir(Path("climb", n)).results().top1 for n in "01"]
    assert [RunDir(Path("climb", n)).config().seed for n in "01"] == [3, 4]
    assert Path("climb/sweep.json").exists(), "which makes it a group of W&B's"


def test_hydras_optuna_sweeper_maximizes_the_top1(own: Path) -> None:
    """If installed by ``pip install --no-deps hydra-optuna-sweeper``: its metadata excludes current Optuna."""
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    words = ["hydra/sweeper=optuna", "hydra.sweeper.direction=maximize", "hydra.sweeper.n_trials=2", "head=noah"]
    done = run(*TRAIN_PY, "-m", *QUICK, *words, "head.head_num=1,2", "hydra.sweep.dir=trials")
    assert done.returncode == 0, done.stderr
    best = yaml.safe_load(Path("trials/optimization_results.yaml").read_text())
    top1 = {RunDir(Path("trials", n)).results().top1 for n in "01"}
    assert best["best_value"] == max(top1)


def test_hydras_own_sweeper_and_a_failing_job(own: Path) -> None:
    words = ["hydra/sweeper=basic", "recipe.optimizer.lr=1e+30", "hydra.sweep.dir=one"]
    answer = call_noah("train", "-m", *QUICK, "data.train_images=48", *words)
    assert answer.status == 1
    assert "Traceback" not in answer.err
    assert answer.err.splitlines()[-1].startswith("noah: ")
    assert "try a smaller recipe.optimizer.lr" in answer.err


def test_mistakes_are_found_before_torch_is_imported(own: Path) -> None:
    code = "import sys; from noah_lightning.cli import main; print(main(sys.argv[1:])); print('torch' in sys.modules)"
    words = ["model=resnet18", "data=digits", "seed=0,1", "recipe.optimizer.lr=0.1,${oops}"]
    done = run(sys.executable, "-c", code, "train", "-m", *words)
    assert done.stdout == "2\nFalse\n", done.stderr


@pytest.mark.parametrize(
    ("call", "line", "offered"),
    [
        (call_train_py, "python train.py mod", {"model="}),
        (call_train_py, "python train.py head=", {"head=gap", "head=noah"}),
        (partial(call_noah, "train"), "noah train head.head_", {"head.head_num=", "head.head_split="}),
        (call_noah, "noah train -m hydra/launcher=lo", {"hydra/launcher=local"}),
        (call_noah, "noah train sweep=head_num_", {"sweep=head_num_key_ratio"}),
        (call_noah, "noah co", {"convert", "compare", "train"}),
    ],
)
def test_tab_completes_groups_and_keys(
    call: Callable[..., Answer], line: str, offered: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", str(len(line)))
    answer = call("-sc", "query=bash")
    assert answer.status == 0, answer.err
    assert offered <= set(answer.out.split())


@pytest.mark.parametrize(
    ("call", "name"),
    [(call_train_py, "python"), (partial(call_noah, "train"), "noah"), (call_noah, "noah")],
)
def test_completion_is_installed_for_the_program(call: Callable[..., Answer], name: str) -> None:
    answer = call("-sc", "install=bash")
    assert answer.status == 0, answer.err
    assert answer.out.splitlines()[-1].endswith(f"-F hydra_bash_completion {name}")


@pytest.mark.ray
def test_a_ray_of_this_machine_schedules_the_jobs(own: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    pytest.importorskip("ray")
    short = tmp_path_factory.getbasetemp() / "r"  # Ray makes sockets there, whose paths may have 107 characters
    ray = ["hydra/launcher=ray", f"+hydra.launcher.init._temp_dir={short}", "+hydra.launcher.init.num_cpus=2"]
    ray += ["+hydra.launcher.init.include_dashboard=false"]
    two = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
    command = [*TRAIN_PY, "-m", *QUICK, *ray, *two, "data.train_images=48", "sweep.dir=ray"]
    home = {"HOME": str(own), "RAY_USAGE_STATS_ENABLED": "0", "RAY_ADDRESS": ""}
    done = run(*command, "recipe.optimizer.lr=0.001,1e+30", **home)
    assert done.returncode == 1
    assert finished(Path("ray")) == {"0"}
    assert "try a smaller recipe.optimizer.lr" in done.stderr
    assert "1 of 2 jobs finished, 1 failed" in done.stdout
