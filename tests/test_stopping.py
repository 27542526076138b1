"""Signals that stop a run, and locking of a run directory."""

import os
import re
import signal
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest

from noah_lightning.distributed import signals as stopping
from noah_lightning.distributed.signals import StopRequest, use_our_signal_handlers
from noah_lightning.errors import ConfigError
from noah_lightning.run_dir import RunDir
from test_task import loader, make_task, make_trainer, toy_data, toy_model


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


class Handler(pl.Callback):
    """The handler of SIGTERM during the training steps."""

    def on_train_batch_start(self, *_: object) -> None:
        self.seen = signal.getsignal(signal.SIGTERM)


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:You defined a .validation_step.")
@pytest.mark.parametrize("ours", [True, False])
def test_fit_keeps_our_signal_handlers_where_lightning_would_replace_them(ours: bool) -> None:
    """Without ours, Lightning's handler is there: the method that we replace is still what ``fit`` calls."""
    stop, handler = StopRequest(), Handler()
    trainer = make_trainer(callbacks=[handler])
    if ours:
        use_our_signal_handlers(trainer)
    with stop.listening():
        expected = signal.getsignal(signal.SIGTERM)
        trainer.fit(make_task(toy_model()), loader(*toy_data()))
    assert (handler.seen == expected) == ours


def test_a_trainer_without_the_method_that_we_replace_is_an_error() -> None:
    """Rather than a run whose signals Lightning handles unnoticed."""
    with pytest.raises(AttributeError):
        use_our_signal_handlers(SimpleNamespace(_signal_connector=SimpleNamespace()))


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    """The lock is of the open file, so a second one in this process stands for that of another."""
    refused = pytest.raises(
        ConfigError, match=rf"^{re.escape(str(tmp_path))} is in use: another process is training there$"
    )
    with RunDir(tmp_path).locked(), refused, RunDir(tmp_path).locked():
        pass
    with RunDir(tmp_path).locked():
        pass


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"file/run cannot be written"), RunDir(tmp_path / "file" / "run").locked():
        pass
