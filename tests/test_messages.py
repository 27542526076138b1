"""One-line messages that hold any name of the file system."""

import io
import logging
import pickle
import sys
from pathlib import Path

import pytest
from torch._utils import ExceptionWrapper

from conftest import FinishedRun
from noah_lightning.cli import main
from noah_lightning.distributed.environment import replace_what_stdout_lacks
from noah_lightning.errors import ConfigError, DataError, HeadSettingError, RunFailed, printable
from noah_lightning.loggers.console import logging_to, start_logging

# A name of undecodable bytes, line breaks, a command to the terminal and a reversal of the text after it.
NAME = "a\nb\r\t\x1b[31m\x85\u2028\u202e\udcff é 日本 🐜"
SHOWN = r"a\nb\r\t\x1b[31m\x85\u2028\u202e\udcff é 日本 🐜"


def test_a_name_is_printed_in_one_line() -> None:
    assert printable(NAME) == SHOWN
    assert printable(SHOWN) == SHOWN  # escaped once, however many messages quote it
    assert SHOWN.isprintable()
    SHOWN.encode()


@pytest.mark.parametrize("kind", [ConfigError, DataError, HeadSettingError, RunFailed])
def test_every_error_of_a_user_is_one_line(kind: type[Exception]) -> None:
    error = kind(f"{NAME} cannot be read")
    assert str(error) == f"{SHOWN} cannot be read"
    copy = pickle.loads(pickle.dumps(error))  # as it passes from a process to another
    assert (type(copy), str(copy)) == (kind, str(error))


def test_a_line_break_in_a_name_survives_a_dataloader_worker() -> None:
    try:
        raise DataError(f"{NAME} cannot be read")
    except DataError:
        wrapped = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(DataError) as caught:
        wrapped.reraise()
    assert str(caught.value) == f"{SHOWN} cannot be read"


def test_log_lines_take_any_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start_logging()
    with logging_to(tmp_path / "train.log"):
        logging.getLogger("noah_lightning").warning("run  %s\x1b[0m", NAME)
    out, err = capsys.readouterr()
    assert (out, err) == (f"run  {SHOWN}\\x1b[0m\n", "")
    assert (tmp_path / "train.log").read_text(encoding="utf-8").endswith(f" run  {SHOWN}\\x1b[0m\n")


@pytest.mark.parametrize("argv", [["rows"], ["settings"], ["heads", "resnet18"], ["compare", "run"]])
def test_a_terminal_of_ascii_shows_every_table(
    argv: list[str], finished_run: FinishedRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "run").symlink_to(finished_run.path)
    monkeypatch.chdir(tmp_path)
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "ascii", errors="strict"))
    assert main(argv) == 0
    sys.stdout.flush()
    text = written.getvalue().decode("ascii")
    assert "?" not in text.replace("| ???", "")  # each character of ours has one that resembles it


def test_characters_that_stdout_lacks_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "latin-1", errors="strict"))
    replace_what_stdout_lacks()
    print("é × −0.5 ± 1 … 日\udcff", flush=True)
    assert written.getvalue().decode("latin-1") == "é × -0.5 ± 1 ... ??\n"
