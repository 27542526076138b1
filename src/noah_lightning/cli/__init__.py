"""The ``noah`` command line.

A user's mistake ends in one line on standard error and exit status 2.
"""

import os
import sys
from collections.abc import Sequence

from noah_lightning.cli.parser import parse
from noah_lightning.distributed.signals import Stopped
from noah_lightning.errors import BROKEN_PIPE, FAILED, INTERRUPTED, MISTAKE, RunFailed, UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``noah <argv>``; returns the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        if argv[:1] == ["train"]:  # Hydra parses the rest by itself
            from noah_lightning.cli.hydra_app import train

            train(argv[1:])
        else:
            arguments = parse(argv)
            status: int | None = arguments.command(arguments)
            return status or 0
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
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains once more at its end
        return BROKEN_PIPE
    return 0
