"""Being asked to stop, and keeping a run directory to oneself."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from noah_lightning.distributed import signals as stopping
from noah_lightning.distributed.signals import StopRequest
from noah_lightning.errors import ConfigError
from noah_lightning.run_dir import RunDir


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_sets_the_flag_and_nothing_else(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    stop = StopRequest()
    with stop.listening():
        assert stop.signal == 0
        os.kill(os.getpid(), number)
        assert stop.signal == number
    assert signal.getsignal(number) == before


def test_a_second_interrupt_stops_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    stop = StopRequest()
    with stop.listening():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # the same Ctrl-C, sent on by the process that started this one
        monkeypatch.setattr(stopping, "ECHO", -1.0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_two_interrupts_stop_at_once_after_a_sigterm_too(monkeypatch: pytest.MonkeyPatch) -> None:
    stop = StopRequest()
    monkeypatch.setattr(stopping, "ECHO", -1.0)
    with stop.listening():
        os.kill(os.getpid(), signal.SIGTERM)
        monkeypatch.setattr(stopping, "ECHO", 1.0)
        os.kill(os.getpid(), signal.SIGINT)
        monkeypatch.setattr(stopping, "ECHO", -1.0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal == signal.SIGTERM


def test_a_second_sigterm_changes_nothing() -> None:
    stop = StopRequest()
    with stop.listening():
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal == signal.SIGUSR1


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from noah_lightning.run_dir import RunDir
with RunDir(Path({str(tmp_path)!r})).locked():
    pass
"""

    def try_it() -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    with RunDir(tmp_path).locked():
        other = try_it()
    assert other.returncode == 1
    assert f"{tmp_path} is in use: another process is training there" in other.stderr
    assert try_it().returncode == 0


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"file/run cannot be written"), RunDir(tmp_path / "file" / "run").locked():
        pass
