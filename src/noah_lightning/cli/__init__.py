"""Command line ``noah``: a user's mistake is one line on standard error and exit status 2."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from noah_lightning.cli.commands import make_parser
from noah_lightning.distributed.environment import replace_what_stdout_lacks
from noah_lightning.distributed.signals import Stopped
from noah_lightning.errors import BROKEN_PIPE, FAILED, INTERRUPTED, MISTAKE, RunFailed, UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``noah <argv>`` and return the exit status."""
    return exit_status(lambda: _command(list(sys.argv[1:] if argv is None else argv)))


def exit_status(command: Callable[[], int | None]) -> int:
    """Run a command and return its exit status; errors that are not bugs become one line."""
    replace_what_stdout_lacks()
    try:
        return command() or 0
    except (UserError, RunFailed) as error:
        print(f"noah: {error}", file=sys.stderr)
        return MISTAKE if isinstance(error, UserError) else FAILED
    except Stopped as stopped:
        return 128 + stopped.signal
    except KeyboardInterrupt as interrupt:
        print(f"noah: {str(interrupt) or 'interrupted'}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader, such as head, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # otherwise Python reports it again at exit
        return BROKEN_PIPE


def _command(argv: list[str]) -> int | None:
    if argv[:1] in (["train"], ["-sc"]):  # Hydra parses the other arguments
        from noah_lightning.cli.hydra_app import train

        if argv[0] == "train" or not _complete(argv):
            train(argv[argv[0] == "train" :])
        return None
    arguments = _parse(argv)
    return arguments.command(arguments)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse as argparse does, but allow options between KEY=VALUE pairs."""
    parser = make_parser()
    arguments, left = parser.parse_known_args(argv)
    pairs = [word for word in left if "=" in word and not word.startswith("-")]
    if left != pairs or (pairs and not hasattr(arguments, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(left)}")
    if pairs:
        arguments.overrides = [*arguments.overrides, *pairs]
    return arguments


def _complete(argv: Sequence[str]) -> bool:
    """Print the completions of ``noah COMMAND``; returns False for all others, which Hydra completes."""
    words = os.environ.get("COMP_LINE", "").split(" ")
    if not argv[-1].startswith("query=") or (words[1:2] == ["train"] and len(words) > 2):
        return False
    print(*next(action.choices or () for action in make_parser()._actions if action.metavar == "COMMAND"))
    return True
