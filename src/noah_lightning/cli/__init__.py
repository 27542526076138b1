"""Command line ``noah``: a user's mistake is one line on standard error and exit status 2."""

import os
import sys
from collections.abc import Callable, Sequence

from noah_lightning.cli.parser import complete, parse
from noah_lightning.distributed.signals import Stopped
from noah_lightning.errors import BROKEN_PIPE, FAILED, INTERRUPTED, MISTAKE, RunFailed, UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``noah <argv>`` and return the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    return exit_status(lambda: _command(argv))


def exit_status(command: Callable[[], int | None]) -> int:
    """Run a command and return its exit status; errors that are not bugs become one line."""
    try:
        return command() or 0
    except UserError as error:
        print(f"noah: {error}", file=sys.stderr)
        return MISTAKE
    except RunFailed as failure:
        print(f"noah: {failure}", file=sys.stderr)
        return FAILED
    except Stopped as stopped:
        return 128 + stopped.signal
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader, such as head, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # otherwise Python reports it again at exit
        return BROKEN_PIPE


def _command(argv: list[str]) -> int | None:
    if argv[:1] in (["train"], ["-sc"]):  # Hydra parses the other arguments
        from noah_lightning.cli.hydra_app import train

        if argv[0] == "train" or not complete(argv):
            train(argv[argv[0] == "train" :])
        return None
    arguments = parse(argv)
    status: int | None = arguments.command(arguments)
    return status
