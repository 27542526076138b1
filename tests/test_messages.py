"""One-line messages that hold any name of the file system."""

import pickle

import pytest
from torch._utils import ExceptionWrapper

from noah_lightning.errors import ConfigError, DataError, HeadSettingError, RunFailed, printable

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
