"""Ctrl-C while a command starts, in real processes: one line and exit status 130."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import FinishedRun, call_noah
from noah_lightning.distributed.signals import Stopped
from noah_lightning.sweep.launchers import stoppable
from noah_lightning.task import ClassificationTask

REPOSITORY = Path(__file__).parents[1]
SCRIPT = "import sys; from noah_lightning.__main__ import main; sys.argv[0] = 'noah'; sys.exit(main())"
STARTS = {
    "noah": [sys.executable, "-c", SCRIPT, "train"],  # what the installed script does
    "python -m noah_lightning": [sys.executable, "-m", "noah_lightning", "train"],
    "python train.py": [sys.executable, str(REPOSITORY / "train.py")],
}
EXPECTED = (130, "", "noah: interrupted\n")


def started(how: str, cwd: Path, *first_on_path: Path) -> "subprocess.Popen[str]":
    path = os.pathsep.join(map(str, [*first_on_path, *sys.path]))
    environment = os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    pipe = subprocess.PIPE
    command = [*STARTS[how], "experiment=demo"]
    return subprocess.Popen(command, cwd=cwd, env=environment, stdout=pipe, stderr=pipe, text=True)


@pytest.mark.parametrize("how", STARTS)
@pytest.mark.parametrize("reaction", ["pass", "raise ImportError('a part is missing')"])
def test_an_interrupted_import_is_one_line(how: str, reaction: str, tmp_path: Path) -> None:
    """Libraries swallow an interrupt of their imports, or raise an error of another name."""
    (tmp_path / "hydra").mkdir()
    library = f"import time\nprint('importing')\ntry:\n    time.sleep(60)\nexcept BaseException:\n    {reaction}\n"
    (tmp_path / "hydra" / "__init__.py").write_text(library)
    process = started(how, tmp_path, tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == EXPECTED


@pytest.mark.slow  # 20 s
@pytest.mark.parametrize("how", STARTS)
@pytest.mark.parametrize("milliseconds", [100, 150, 200, 300, 400, 500, 1000, 2000])
def test_an_interrupt_at_any_moment_is_one_line(how: str, milliseconds: int, tmp_path: Path) -> None:
    process = started(how, tmp_path)
    time.sleep(milliseconds / 1000)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    not_begun = "Traceback" in err and "noah_lightning" not in err and "train.py" not in err  # Python was starting
    if not not_begun:
        assert (process.returncode, out, err) == EXPECTED


def test_an_ignored_interrupt_stays_ignored(tmp_path: Path) -> None:
    """As for a command that a shell starts in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = subprocess.Popen([sys.executable, "-m", "noah_lightning", "--help"], stdout=subprocess.PIPE)
    finally:
        signal.signal(signal.SIGINT, before)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[0].startswith(b"usage: noah")
    assert process.returncode == 0


def test_an_interrupted_evaluation_is_one_line(finished_run: FinishedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ClassificationTask, "validation_step", interrupt)
    before = signal.getsignal(signal.SIGINT)
    try:
        answer = call_noah("evaluate", str(finished_run.path))
    finally:
        signal.signal(signal.SIGINT, before)  # Lightning ignores further ones
    assert (answer.status, answer.out, answer.err) == EXPECTED


def test_an_interrupted_sweep_says_how_to_resume_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Stopped, match="SIGINT"), stoppable("sweep.resume=true resumes it"):
        raise KeyboardInterrupt
    assert capsys.readouterr().out == "\nsweep    stopped; sweep.resume=true resumes it\n"
