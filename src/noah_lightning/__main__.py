"""Entry point of ``noah`` and of ``python -m noah_lightning``."""

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def main(command: "Callable[[], int] | None" = None) -> int:
    """Run a command, by default that of the command line; Ctrl-C at any moment is one line and exit status 130."""
    try:  # imports nothing before, as Ctrl-C would end in a traceback
        from noah_lightning.distributed.signals import interrupts_in_one_line

        with interrupts_in_one_line():
            from noah_lightning import cli

            return (command or cli.main)()
    except KeyboardInterrupt:
        print("noah: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
