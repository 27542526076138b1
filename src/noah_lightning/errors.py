"""Mistakes a user can mend.

Every class here carries one line that says what is wrong and what to do about it. The command line prints
that line and exits with status 2; anything else that escapes is a bug and keeps its traceback.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """Base of all mistakes a user can mend; ``str(error)`` is one line."""


class ConfigError(UserError):
    """The composed configuration asks for something that does not exist or cannot work."""


class HeadSettingError(UserError, ValueError):
    """Head settings that cannot work for the width at hand."""


class UnknownModelError(UserError, ValueError):
    """A backbone name that timm does not know."""


class NoSpatialMapError(UserError, ValueError):
    """The backbone has no map over positions that a head could attend to."""


class WeightsError(UserError, ValueError):
    """A weights file or checkpoint that is missing, unreadable or made for another model."""


class DataError(UserError, ValueError):
    """Data that is missing, mislaid or unreadable.

    A loading process hands its error over as the whole traceback in one text, whose last line is
    "noah_lightning.errors.DataError: " and the message; only the message is for the user.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.rstrip().rpartition("\n")[2].removeprefix(f"{__name__}.DataError: "))


class RunFailed(Exception):
    """A run, or a job of a sweep, failed; ``str(error)`` is one line, and what can be told has been told."""


class RunFailedEverywhere(RunFailed):
    """All processes of the run meet it in the same step; it is for the first one to tell."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown ``word``: the nearest known ones, or all where they are few."""
    known = list(known)
    near = get_close_matches(word, known, n=3, cutoff=0.5)
    if near:
        return f"; did you mean {' or '.join(near)}?"
    return f"; there are {', '.join(known)}" if 0 < len(known) <= 12 else ""


def name_first(names: list[str]) -> str:
    """The first three names, for a message."""
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def one_line(error: BaseException, limit: int = 300) -> str:
    """The message of a library's error with its line breaks folded, cut at ``limit`` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"


FAILED, MISTAKE, INTERRUPTED, BROKEN_PIPE = 1, 2, 130, 141
