"""The ``noah`` command line.

Subcommands import what they need when they run, so that ``noah --help`` answers at once. A user's mistake ends in
one line on standard error and exit status 2.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from noah_lightning import __version__
from noah_lightning.errors import UserError

MISTAKE, INTERRUPTED = 2, 130  # exit statuses


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``noah <argv>``; returns the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        if argv[:1] == ["train"]:  # Hydra parses the rest by itself
            from noah_lightning.app import train

            train(argv[1:])
        else:
            arguments = _parser().parse_args(argv)
            arguments.command(arguments)
    except UserError as error:
        print(f"noah: {error}", file=sys.stderr)
        return MISTAKE
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="noah",
        description="A laboratory for image-classification heads, and the reference implementation of NOAH.",
        epilog="noah COMMAND --help says more about a command.",
    )
    parser.add_argument("--version", action="version", version=f"noah_lightning {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    commands.add_parser("train", help="train a model; takes Hydra overrides: noah train model=resnet18 head=noah")

    about = "validate a finished run from its directory"
    evaluate = commands.add_parser("evaluate", help=about, description=f"{about}, as its last log line did")
    evaluate.add_argument("run", type=Path, metavar="RUN", help="the directory that the run's first line named")
    evaluate.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="such as data.root=/data/imagenet")
    evaluate.add_argument("--checkpoint", choices=("best", "last"), default="best", help="default: best")
    evaluate.set_defaults(command=_evaluate)

    about = "train both heads on hand-written digits, compare and draw them"
    demo = commands.add_parser("demo", help=about, description=f"{about}; all of it lies in runs/DATE/TIME_demo/")
    demo.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="such as model=resnet18 for both runs")
    demo.set_defaults(command=_demo)
    return parser


def _evaluate(arguments: argparse.Namespace) -> None:
    from noah_lightning import console
    from noah_lightning.evaluate import evaluate

    console.start_logging()
    accuracy = evaluate(arguments.run, arguments.checkpoint, arguments.overrides)
    print(f"{arguments.run} ({arguments.checkpoint})  val {accuracy}")


def _demo(arguments: argparse.Namespace) -> None:
    from noah_lightning import console
    from noah_lightning.demo import demo

    console.start_logging()
    demo(arguments.overrides)
