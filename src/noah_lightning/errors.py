"""Errors that a user can fix, and their one-line messages.

A ``UserError`` is one line: what is wrong and what to do. The command line prints that line and exits with status 2.
Any other exception is a bug and keeps its traceback.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from shlex import quote


def printable(text: object) -> str:
    """The text in one line: control characters, line breaks and undecodable bytes of a file name as escapes.

    Names from the file system may hold all of them. What is escaped already stays as it is.
    """
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in str(text))


def shell_word(path: object) -> str:
    """A path as one word of a shell command in a message."""
    return printable(quote(str(path)))


class _OneLineError(Exception):
    def __init__(self, message: object = "") -> None:
        super().__init__(printable(message))


class UserError(_OneLineError):
    """Base class of errors that a user can fix; ``str(error)`` is one line."""


class ConfigError(UserError):
    """Invalid configuration or command."""


class HeadSettingError(UserError, ValueError):
    """Head settings that do not fit the number of channels."""


class UnknownModelError(UserError, ValueError):
    """Unknown name of a backbone."""


class NoSpatialMapError(UserError, ValueError):
    """A backbone without a spatial feature map for the head."""


class WeightsError(UserError, ValueError):
    """A weights file or checkpoint that is missing, unreadable or of another model."""


class DataError(UserError, ValueError):
    """Data that is missing, misplaced or unreadable.

    A DataLoader worker passes its error on as the text of a whole traceback, which ends with
    "noah_lightning.errors.DataError: " and the message; only the message is kept.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.rpartition(f"{__name__}.DataError: ")[2].rstrip("\n"))


class RunFailed(_OneLineError):
    """A run, or a job of a sweep, failed; ``str(error)`` is one line, and details have been reported."""


class RunFailedEverywhere(RunFailed):
    """A failure that all processes of a run raise in the same step and that only rank 0 reports."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """End of a message about an unknown ``word``: the closest known words, or all of them if there are few."""
    known = list(known)
    near = get_close_matches(word, known, n=3, cutoff=0.5)
    if near:
        return f"; did you mean {' or '.join(near)}?"
    return f"; choose from {', '.join(known)}" if 0 < len(known) <= 12 else ""


def name_first(names: list[str]) -> str:
    """The first three names, for a message."""
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def count(number: int, thing: str) -> str:
    """``1 seed``, ``2 seeds``, ``2 classes``."""
    ending = "" if number == 1 else "es" if thing.endswith("s") else "s"
    return f"{number:,} {thing}{ending}"


def one_line(error: BaseException, limit: int = 300) -> str:
    """The message of a library's error with its line breaks folded, cut at ``limit`` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"


FAILED, MISTAKE, INTERRUPTED, BROKEN_PIPE = 1, 2, 130, 141
