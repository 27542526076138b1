"""Argument parser of ``noah``."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from noah_lightning import __version__
from noah_lightning.cli import commands as run


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse as argparse does, but allow options between KEY=VALUE pairs."""
    parser = make_parser()
    arguments, left = parser.parse_known_args(argv)
    pairs = [word for word in left if "=" in word and not word.startswith("-")]
    if left != pairs or (pairs and not hasattr(arguments, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(left)}")
    if pairs:
        arguments.overrides = [*arguments.overrides, *pairs]
    return arguments


def make_parser() -> argparse.ArgumentParser:
    """Parser of all commands; Hydra parses the arguments of ``train``."""
    parser = argparse.ArgumentParser(
        prog="noah",
        description="Trains and compares image-classification heads; reference implementation of NOAH.",
        epilog="Run noah COMMAND --help for the arguments of a command.",
    )
    parser.add_argument("--version", action="version", version=f"noah_lightning {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    commands.add_parser("train", help="train a model; takes Hydra overrides: noah train model=resnet18 head=noah")

    about = "print the rows of the paper: models, parameters, published accuracy"
    rows = commands.add_parser("rows", help=about, description=f"{about}; parameters are computed here")
    rows.add_argument("--cost", action="store_true", help="commands and training cost instead (half a minute)")
    rows.add_argument("--markdown", action="store_true", help="the table as Markdown")
    rows.set_defaults(command=run.rows)

    about = "list the settings of a run: default, values, meaning"
    settings = commands.add_parser("settings", help=about, description=about)
    settings.add_argument("prefix", nargs="?", default="", metavar="KEY", help="only these, such as recipe.schedule")
    settings.add_argument("--markdown", action="store_true", help="the table as Markdown")
    settings.set_defaults(command=run.settings)

    about = "show which heads fit a model and what they cost, before training"
    heads = commands.add_parser("heads", help=about, description=about)
    heads.add_argument("model", metavar="MODEL", help="a row of the paper, or any timm name")
    heads.add_argument("--num-classes", type=_positive, default=1000, metavar="K", help="default: 1000")
    heads.set_defaults(command=run.heads)

    about = "convert an official checkpoint of the paper"
    convert = commands.add_parser("convert", help=about, description=f"{about}, for noah evaluate DIR")
    convert.add_argument("file", type=Path, metavar="FILE", help="saved by the official scripts")
    convert.add_argument("--model", required=True, metavar="ROW", help="as noah rows lists them")
    convert.add_argument("--head", required=True, choices=("gap", "noah"))
    convert.add_argument("--output", required=True, type=Path, metavar="DIR", help="a new folder for the result")
    convert.add_argument("--ema", action="store_true", help="take the averaged weights, if the file has them")
    convert.set_defaults(command=run.convert)

    about = "validate a finished run, or a converted model, from its directory"
    evaluate = commands.add_parser("evaluate", help=about, description=about)
    evaluate.add_argument("folder", type=Path, metavar="DIR", help="a run directory, or one written by noah convert")
    evaluate.add_argument(
        "overrides", nargs="*", default=[], metavar="KEY=VALUE", help="such as data.root=/data/imagenet"
    )
    evaluate.add_argument("--checkpoint", choices=("best", "last"), default="best", help="default: best")
    evaluate.add_argument("--ema", action="store_true", help="the average of the weights (of a run with recipe.ema)")
    evaluate.set_defaults(command=run.evaluate)

    about = "resume an interrupted run from its last checkpoint"
    resume = commands.add_parser(
        "resume", help=about, description=f"{about}; it ends exactly as if it had not been interrupted"
    )
    resume.add_argument("folder", type=Path, metavar="RUN", help="the run's directory")
    resume.add_argument(
        "overrides", nargs="*", default=[], metavar="KEY=VALUE", help="such as data.root=/data/imagenet"
    )
    resume.add_argument(
        "--force",
        action="store_true",
        help="allow other processes, accumulated passes or recipe.batch_size; restarts the current epoch",
    )
    resume.set_defaults(command=run.resume)

    about = "check a folder of images for problems, before training"
    check = commands.add_parser(
        "check-data",
        help=about,
        description=f"{about}: decodes every file, on all cores. Exit status 1 if there are problems.",
    )
    check.add_argument("root", type=Path, metavar="ROOT", help="with train/<class>/ and val/<class>/")
    check.add_argument("--json", action="store_true", help="as JSON, with every file")
    check.set_defaults(command=run.check_data)

    about = "compare finished runs: accuracy over seeds, paired tests, cost, figures"
    compare = commands.add_parser("compare", help=about, description=f"{about}; needs local files only")
    compare.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="runs, sweeps, or folders of them")
    form = compare.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="the table as Markdown")
    form.add_argument("--latex", action="store_true", help="the table as LaTeX")
    form.add_argument("--csv", action="store_true", help="all numbers, in full precision")
    compare.add_argument("--html", type=Path, metavar="FILE", help="write a self-contained page with figures")
    compare.set_defaults(command=run.compare)

    about = "build a W&B workspace and a report that compare runs"
    dashboard = commands.add_parser("dashboard", help=about, description=f"{about}; running it again updates them")
    dashboard.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="runs, sweeps, or folders of them")
    dashboard.add_argument("--entity", help="default: that of the runs")
    dashboard.add_argument("--project", help="default: that of the runs")
    dashboard.add_argument("--dry-run", action="store_true", help="print what would be built, as JSON")
    dashboard.set_defaults(command=run.dashboard)

    about = "pack a folder tree of images into a few large files, for data=packed"
    pack = commands.add_parser("pack", help=about, description=f"{about}; the images are not changed")
    pack.add_argument("root", type=Path, metavar="ROOT", help="holds train/CLASS/ and val/CLASS/")
    pack.add_argument("out", type=Path, metavar="OUT", help="a new folder, for data.root")
    pack.add_argument(
        "--shard-size", type=_positive, default=256, metavar="MB", help="size of each file; default: 256"
    )
    pack.set_defaults(command=run.pack)

    about = "train both heads on handwritten digits and compare them"
    demo = commands.add_parser("demo", help=about, description=f"{about}; results are in runs/DATE/TIME_demo/")
    demo.add_argument(
        "overrides", nargs="*", default=[], metavar="KEY=VALUE", help="such as model=resnet18 for both runs"
    )
    demo.set_defaults(command=run.demo)
    return parser


def complete(argv: Sequence[str]) -> bool:
    """Print the completions of ``noah COMMAND``; returns False for all others, which Hydra completes."""
    words = os.environ.get("COMP_LINE", "").split(" ")
    if not argv[-1].startswith("query=") or (words[1:2] == ["train"] and len(words) > 2):
        return False
    print(*next(action.choices or () for action in make_parser()._actions if action.metavar == "COMMAND"))
    return True


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer of at least 1")
    return int(text)
