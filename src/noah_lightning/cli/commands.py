"""Commands of ``noah`` and their arguments; each calls the function of its name and prints the result.

Imports are local, so that ``noah --help`` is fast.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from noah_lightning import __version__
from noah_lightning.errors import FAILED, ConfigError, printable, shell_word

if TYPE_CHECKING:
    from noah_lightning.analysis.tables import Table


def make_parser() -> argparse.ArgumentParser:
    """Parser of all commands; Hydra parses the arguments of ``train``."""
    parser = argparse.ArgumentParser(
        prog="noah",
        description="Trains and compares image-classification heads; reference implementation of NOAH.",
        epilog="Run noah COMMAND --help for the arguments of a command.",
    )
    parser.add_argument("--version", action="version", version=f"noah_lightning {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(function: Callable[..., int | None], about: str, more: str = "") -> argparse.ArgumentParser:
        name = function.__name__.replace("_", "-")
        command = commands.add_parser(name, help=about, description=f"{about}{more}")
        command.set_defaults(command=function)
        return command

    commands.add_parser("train", help="train a model; takes Hydra overrides: noah train model=resnet18 head=noah")

    about = "print the rows of the paper: models, parameters, published accuracy"
    command = add(rows, about, "; parameters are computed here")
    command.add_argument("--cost", action="store_true", help="commands and training cost instead (half a minute)")
    command.add_argument("--markdown", action="store_true", help="the table as Markdown")

    command = add(settings, "list the settings of a run: default, values, meaning")
    command.add_argument("prefix", nargs="?", default="", metavar="KEY", help="only these, such as recipe.schedule")
    command.add_argument("--markdown", action="store_true", help="the table as Markdown")

    command = add(heads, "show which heads fit a model and what they cost, before training")
    about = "a row of the paper, or any timm name; default with --list: resnet18"
    command.add_argument("model", nargs="?", metavar="MODEL", help=about)
    about = "all heads with paper and equation, instead of settings of NOAH"
    command.add_argument("--list", action="store_true", help=about)
    command.add_argument("--num-classes", type=_positive, default=1000, metavar="K", help="default: 1000")
    command.add_argument("--markdown", action="store_true", help="the table as Markdown")

    command = add(convert, "convert an official checkpoint of the paper", ", for noah evaluate DIR")
    command.add_argument("file", type=Path, metavar="FILE", help="saved by the official scripts")
    command.add_argument("--model", required=True, metavar="ROW", help="as noah rows lists them")
    command.add_argument("--head", required=True, choices=("gap", "noah"))
    command.add_argument("--output", required=True, type=Path, metavar="DIR", help="a new folder for the result")
    command.add_argument("--ema", action="store_true", help="take the averaged weights, if the file has them")

    command = add(evaluate, "validate a finished run, or a converted model, from its directory")
    command.add_argument("folder", type=Path, metavar="DIR", help="a run directory, or one written by noah convert")
    _add_overrides(command, "such as data.root=/data/imagenet")
    command.add_argument("--checkpoint", choices=("best", "last"), default="best", help="default: best")
    command.add_argument("--ema", action="store_true", help="the average of the weights (of a run with recipe.ema)")

    about = "show what decides the logits: attention and contributions over images"
    command = add(attention, about, "; a PNG for each image and a page of all, which opens offline")
    about = "a run, a folder of noah convert, a row of the paper, or a timm model with its pretrained weights"
    command.add_argument("model", metavar="RUN_OR_MODEL", help=about)
    about = "files, folders, validation images such as val:0-7, or settings such as data.root=/data/imagenet"
    command.add_argument("images", nargs="+", metavar="IMAGE", help=about)
    command.add_argument("--output", type=Path, metavar="DIR", help="a new folder; default: runs/DATE/TIME_attention")
    about = "draw this class too; can be repeated"
    command.add_argument("--class", action="append", default=[], dest="classes", metavar="NAME_OR_INDEX", help=about)
    about = "draw only this attention block, from 1; can be repeated"
    command.add_argument("--head", action="append", type=_positive, default=[], metavar="N", help=about)
    about = "draw what speaks for class A rather than B"
    command.add_argument("--contrast", nargs=2, metavar=("A", "B"), help=about)
    command.add_argument("--checkpoint", choices=("best", "last"), default="best", help="of a run; default: best")
    command.add_argument("--ema", action="store_true", help="the average of the weights (of a run with recipe.ema)")
    command.add_argument("--weights", type=Path, metavar="FILE", help="of a timm model, instead of pretrained ones")
    command.set_defaults(overrides=[])

    about = "resume an interrupted run from its last checkpoint"
    command = add(resume, about, "; it ends exactly as if it had not been interrupted")
    command.add_argument("folder", type=Path, metavar="RUN", help="the run's directory")
    _add_overrides(command, "such as data.root=/data/imagenet")
    about = "allow other processes, accumulated passes or recipe.batch_size; restarts the current epoch"
    command.add_argument("--force", action="store_true", help=about)

    about = "check a folder of images for problems, before training"
    command = add(check_data, about, ": decodes every file, on all cores. Exit status 1 if there are problems.")
    command.add_argument("root", type=Path, metavar="ROOT", help="with train/<class>/ and val/<class>/")
    command.add_argument("--json", action="store_true", help="as JSON, with every file")

    about = "compare finished runs: accuracy over seeds, paired tests, cost, figures"
    command = add(compare, about, "; needs local files only")
    command.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="runs, sweeps, or folders of them")
    form = command.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="the table as Markdown")
    form.add_argument("--latex", action="store_true", help="the table as LaTeX")
    form.add_argument("--csv", action="store_true", help="all numbers, in full precision")
    command.add_argument("--html", type=Path, metavar="FILE", help="write a self-contained page with figures")
    command.add_argument("--figures", type=Path, metavar="DIR", help="write the figures of the page as PNG files")

    about = "build a W&B workspace and a report that compare runs"
    command = add(dashboard, about, "; running it again updates them")
    command.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="runs, sweeps, or folders of them")
    command.add_argument("--entity", help="default: that of the runs")
    command.add_argument("--project", help="default: that of the runs")
    command.add_argument("--dry-run", action="store_true", help="print what would be built, as JSON")

    about = "pack a folder tree of images into a few large files, for data=packed"
    command = add(pack, about, "; the images are not changed")
    command.add_argument("root", type=Path, metavar="ROOT", help="holds train/CLASS/ and val/CLASS/")
    command.add_argument("out", type=Path, metavar="OUT", help="a new folder, for data.root")
    about = "size of each file; default: 256"
    command.add_argument("--shard-size", type=_positive, default=256, metavar="MB", help=about)

    about = "train both heads on handwritten digits and compare them"
    command = add(demo, about, "; results are in runs/DATE/TIME_demo/")
    _add_overrides(command, "such as model=resnet18 for both runs")
    return parser


def _add_overrides(command: argparse.ArgumentParser, about: str) -> None:
    command.add_argument("overrides", nargs="*", default=[], metavar="KEY=VALUE", help=about)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer of at least 1")
    return int(text)


def rows(arguments: argparse.Namespace) -> None:
    from noah_lightning.tools.model_tables import cost_table, rows_table

    _show(cost_table() if arguments.cost else rows_table(), arguments.markdown)


def settings(arguments: argparse.Namespace) -> None:
    from noah_lightning.cli.settings import settings_table

    _show(settings_table(arguments.prefix), arguments.markdown)


def _show(table: "Table", markdown: bool) -> None:
    if markdown:
        print(table.markdown())
    else:
        table.show()


def heads(arguments: argparse.Namespace) -> None:
    from noah_lightning.tools.model_tables import list_report, settings_report

    if arguments.model is None and not arguments.list:
        raise ConfigError("noah heads needs a model, such as noah heads resnet18; noah heads --list prints all heads")
    make_report = list_report if arguments.list else settings_report
    report = make_report(arguments.model or "resnet18", arguments.num_classes)
    if not arguments.markdown:
        print(*report.model, sep="\n")
    _show(report.table, arguments.markdown)
    for note in report.notes:
        print(f"\n{note}" if arguments.markdown else note)


def convert(arguments: argparse.Namespace) -> None:
    from noah_lightning.models.official_checkpoints import holds_average
    from noah_lightning.tools.convert import convert

    facts = convert(arguments.file, arguments.model, arguments.head, arguments.output, arguments.ema)
    print(printable(f"{facts.row} with {facts.head}, {facts.parameters:,} parameters: {arguments.output}"))
    if facts.pre_logits:
        print("with the pre-logits layer of the released code, which is not in the published parameter count")
    if not facts.ema and holds_average(arguments.file):
        print("the file also has averaged weights; --ema converts those")
    print(f"noah evaluate {shell_word(arguments.output)} data=imagenet data.root=/data/imagenet")


def evaluate(arguments: argparse.Namespace) -> None:
    from noah_lightning.evaluate import evaluate
    from noah_lightning.loggers import console

    console.start_logging()
    score = evaluate(arguments.folder, arguments.checkpoint, arguments.overrides, arguments.ema)
    weights = f"{arguments.checkpoint}, ema" if arguments.ema else arguments.checkpoint
    print(printable(f"{arguments.folder} ({weights})  val {score}"))


def attention(arguments: argparse.Namespace) -> None:
    from datetime import datetime

    from noah_lightning.loggers import console
    from noah_lightning.tools.attention import GALLERY, Asked, attention
    from noah_lightning.tools.trained import open_trained

    console.start_logging()
    settings = [word for word in arguments.images if "=" in word and not Path(word).exists()]
    words = [word for word in arguments.images if word not in settings]
    overrides = [*settings, *arguments.overrides]
    trained = open_trained(arguments.model, arguments.checkpoint, overrides, arguments.ema, arguments.weights)
    output = arguments.output or Path("runs") / f"{datetime.now():%Y-%m-%d/%H-%M-%S}_attention"
    asked = Asked(arguments.classes, arguments.head, arguments.contrast)
    for table in attention(trained, words, output, asked).tables():
        table.show()
    print(printable(f"gallery  {output / GALLERY}"))


def resume(arguments: argparse.Namespace) -> None:
    from noah_lightning.run_dir import RunDir
    from noah_lightning.sweep.job import train_in_processes

    config = RunDir(arguments.folder).config_to_resume(arguments.overrides, arguments.force)
    train_in_processes(config, arguments.folder.resolve(), resume=True, force=arguments.force)


def check_data(arguments: argparse.Namespace) -> int:
    from noah_lightning.tools.check_data import check_data

    report = check_data(arguments.root)
    if arguments.json:
        print(report.json())
    else:
        report.show()
    return 0 if report.clean else FAILED


def compare(arguments: argparse.Namespace) -> None:
    from noah_lightning import analysis as runs

    comparison = runs.compare(arguments.folders)
    if arguments.markdown:
        print(runs.markdown(comparison))
    elif arguments.latex:
        print(runs.latex(comparison))
    elif arguments.csv:
        print(runs.csv(comparison), end="")
    else:
        runs.show(comparison)
    if arguments.html:
        runs.write_html(comparison, arguments.html)
    if arguments.figures:
        runs.write_figures(comparison, arguments.figures)


def dashboard(arguments: argparse.Namespace) -> None:
    from noah_lightning.loggers.dashboard import dashboard

    print(dashboard(arguments.folders, arguments.entity, arguments.project, arguments.dry_run))


def pack(arguments: argparse.Namespace) -> None:
    from noah_lightning.loggers import console
    from noah_lightning.tools.pack import pack

    console.start_logging()
    print(printable(pack(arguments.root, arguments.out, arguments.shard_size * 10**6)))


def demo(arguments: argparse.Namespace) -> None:
    from noah_lightning.demo import demo
    from noah_lightning.loggers import console

    console.start_logging()
    demo(arguments.overrides)
