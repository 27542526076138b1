"""Commands of ``noah``: each calls the function of its name and prints the result.

Imports are local, so that ``noah --help`` is fast.
"""

import argparse

from noah_lightning.errors import FAILED


def rows(arguments: argparse.Namespace) -> None:
    from noah_lightning.tools.model_tables import cost_table, rows_table

    table = cost_table() if arguments.cost else rows_table()
    if arguments.markdown:
        print(table.markdown())
    else:
        table.show()


def settings(arguments: argparse.Namespace) -> None:
    from noah_lightning.cli.settings import settings_table

    table = settings_table(arguments.prefix)
    if arguments.markdown:
        print(table.markdown())
    else:
        table.show()


def heads(arguments: argparse.Namespace) -> None:
    from noah_lightning.tools.model_tables import preflight

    look = preflight(arguments.model, arguments.num_classes)
    channels, rows, columns = look.feature_map
    print(f"{look.model}  image {look.image_size[0]} × {look.image_size[1]}  {arguments.num_classes:,} classes")
    print(f"feature map  {channels} channels × {rows} × {columns} = {rows * columns} positions")
    print(f"backbone     {look.parameters:,} parameters, {look.multiply_adds / 1e6:,.0f} M multiply-adds")
    look.heads.show()
    print("kept per image: what a training step keeps for the backward pass, in float32")
    if look.impossible:
        print(f"impossible, as they do not divide the channels: {', '.join(look.impossible)}")


def convert(arguments: argparse.Namespace) -> None:
    from noah_lightning.models.official_checkpoints import holds_average
    from noah_lightning.tools.convert import convert

    facts = convert(arguments.file, arguments.model, arguments.head, arguments.output, arguments.ema)
    print(f"{facts.row} with {facts.head}, {facts.parameters:,} parameters: {arguments.output}")
    if facts.pre_logits:
        print("with the pre-logits layer of the released code, which is not in the published parameter count")
    if not facts.ema and holds_average(arguments.file):
        print("the file also has averaged weights; --ema converts those")
    print(f"noah evaluate {arguments.output} data=imagenet data.root=/data/imagenet")


def evaluate(arguments: argparse.Namespace) -> None:
    from noah_lightning.evaluate import evaluate
    from noah_lightning.loggers import console

    console.start_logging()
    accuracy = evaluate(arguments.folder, arguments.checkpoint, arguments.overrides, arguments.ema)
    weights = f"{arguments.checkpoint}, ema" if arguments.ema else arguments.checkpoint
    print(f"{arguments.folder} ({weights})  val {accuracy}")


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


def dashboard(arguments: argparse.Namespace) -> None:
    from noah_lightning.loggers.dashboard import dashboard

    print(dashboard(arguments.folders, arguments.entity, arguments.project, arguments.dry_run))


def pack(arguments: argparse.Namespace) -> None:
    from noah_lightning.loggers import console
    from noah_lightning.tools.pack import pack

    console.start_logging()
    print(pack(arguments.root, arguments.out, arguments.shard_size * 10**6))


def demo(arguments: argparse.Namespace) -> None:
    from noah_lightning.demo import demo
    from noah_lightning.loggers import console

    console.start_logging()
    demo(arguments.overrides)
