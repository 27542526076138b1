"""Study of all heads on Fashion-MNIST: frozen features, settings of NOAH, fine-tuning, and a document of the results.

One command trains what is missing, as ``noah train -m`` would, and writes the document from the run directories.
"""

import argparse
import json
import sys
import time
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, get_args

from benchmarks.report import at_least, machine
from benchmarks.study_report import FACTS, write_document
from noah_lightning import cli
from noah_lightning.atomic_io import write_whole
from noah_lightning.config.choices import NoahInit
from noah_lightning.errors import FAILED, MISTAKE, UserError
from noah_lightning.heads import head_names
from noah_lightning.loggers.console import silence_libraries
from noah_lightning.run_dir import RESULTS, SWEEP

STOPPED = 128  # lowest exit status of a command that was stopped by a signal
QUICK_HEADS = ("gap", "avg", "noah")
# The most expensive heads come last, so that a study that is stopped has finished most of them.
FIRST, LAST = ("gap", "noah"), ("vjepa", "map", "clip", "ml_decoder", "cait")


@dataclass(frozen=True)
class Size:
    """How much is trained."""

    heads: tuple[str, ...]
    seeds: int
    images: int  # training images of the frozen parts
    val_images: int
    image_size: int
    epochs: int
    rates: tuple[float, ...]
    head_nums: tuple[int, ...]
    key_ratios: tuple[float, ...]
    grid_seeds: int
    long_heads: tuple[str, ...]
    long_epochs: int
    tune_heads: tuple[str, ...]
    tune_seeds: int
    tune_images: int
    tune_size: int
    tune_epochs: int


FULL = Size(
    heads=(*FIRST, *(name for name in head_names() if name not in (*FIRST, *LAST)), *LAST),
    seeds=5,
    images=500,
    val_images=2000,
    image_size=128,
    epochs=8,
    rates=(0.03, 0.1, 0.3, 1.0),
    head_nums=(1, 2, 4, 8, 16),
    key_ratios=(0.125, 0.25, 0.5, 0.75),
    grid_seeds=3,
    long_heads=("gap", "noah", "avg", "avgmax", "gem", "csra", "ep"),
    long_epochs=40,
    tune_heads=("gap", "avg", "noah", "ep", "map", "csra"),
    tune_seeds=3,
    tune_images=1000,
    tune_size=64,
    tune_epochs=2,
)
QUICK = replace(
    FULL,
    heads=QUICK_HEADS,
    seeds=2,
    images=200,
    val_images=200,
    image_size=64,
    epochs=1,
    rates=(0.1, 1.0),
    head_nums=(1, 4),
    key_ratios=(0.25, 0.5),
    grid_seeds=2,
    long_heads=QUICK_HEADS,
    long_epochs=2,
    tune_heads=QUICK_HEADS,
    tune_seeds=1,
    tune_images=200,
    tune_epochs=1,
)


def sweeps(size: Size, options: argparse.Namespace) -> dict[str, list[str]]:
    """The arguments of ``noah train -m`` for each part of the study, by the name of its folder."""
    common = ["model=timm", f"model.name={options.model}", f"model.weights={options.weights.resolve()}"]
    common += ["data=fashion_mnist", f"data.root={options.data.resolve()}", f"data.val_images={size.val_images}"]
    lab = [*common, "experiment=head_lab", f"data.image_size={size.image_size}", f"data.train_images={size.images}"]
    lab += [f"recipe.optimizer.lr_choices=[{_listed(size.rates)}]", "recipe.batch_size=64"]
    # One validation, after the last epoch: no epoch is chosen on the images that count.
    lab += ["trainer.check_val_every_n_epoch=${recipe.epochs}"]
    lab += ["hydra.launcher.holdout=0.2", f"hydra.launcher.store={options.output.resolve() / 'features'}"]
    lab += [f"sweep.jobs={options.jobs}"]
    tune = [*common, f"data.image_size={size.tune_size}", f"data.train_images={size.tune_images}", "data.seed=0"]
    tune += ["recipe=plain", f"recipe.epochs={size.tune_epochs}", "recipe.batch_size=32"]
    tune += ["recipe.optimizer.name=adamw", "recipe.optimizer.lr=0.0005", "recipe.optimizer.lr_batch=null"]
    tune += ["recipe.schedule.name=cosine", "recipe.schedule.per=step"]
    tune += [f"trainer.check_val_every_n_epoch={size.tune_epochs}", "attention.curve_images=0"]
    grid = [f"head.head_num={_listed(size.head_nums)}", f"head.key_ratio={_listed(size.key_ratios)}"]
    seeds = f"seed={_listed(range(size.grid_seeds))}"
    short, both = f"recipe.epochs={size.epochs}", f"recipe.epochs={size.epochs},{size.long_epochs}"
    inits = f"head.init={_listed(get_args(NoahInit))}"
    return {
        "frozen": [*lab, short, f"head={_listed(size.heads)}", f"seed={_listed(range(size.seeds))}"],
        "long": [*lab, f"recipe.epochs={size.long_epochs}", f"head={_listed(size.long_heads)}", seeds],
        "init": [*lab, both, "head=noah", inits, seeds],
        "grid": [*lab, short, "head=noah", *grid, seeds],
        "tuned": [*tune, f"head={_listed(size.tune_heads)}", f"seed={_listed(range(size.tune_seeds))}"],
    }


def _listed(values: Any) -> str:
    return ",".join(map(str, values))


def study(parts: dict[str, list[str]], output: Path) -> int:
    """Train the jobs of each part that have not finished, and record the time; returns the highest exit status.

    Raises:
        SystemExit: a sweep was stopped by a signal, or its command has a mistake.
    """
    worst = 0
    for name, words in parts.items():
        folder = output / name
        resume = ["sweep.resume=true"] if (folder / SWEEP).is_file() else []
        print(f"\n=== {name}", flush=True)
        before, started = _finished(folder), time.perf_counter()
        status = cli.main(["train", "-m", *words, f"sweep.dir={folder}", *resume])
        if _finished(folder) > before:
            _record(output / FACTS, name, time.perf_counter() - started)
        if status == MISTAKE or status >= STOPPED:
            sys.exit(status)
        worst = max(worst, status)
    return worst


def _record(path: Path, part: str, seconds: float) -> None:
    """Add the time of a part to the facts in ``path``, with date and machine."""
    facts: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"seconds": {}}
    facts["seconds"][part] = facts["seconds"].get(part, 0) + seconds
    facts |= {"machine": machine(), "date": date.today().isoformat()}
    write_whole(path, lambda file: file.write(json.dumps(facts, indent=1).encode()))


def _finished(folder: Path) -> int:
    return len(list(folder.glob(f"*/{RESULTS}")))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Study of all heads on Fashion-MNIST; a second call resumes it.")
    integer = partial(at_least, 1)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="the four files of Fashion-MNIST")
    parser.add_argument("--weights", type=Path, required=True, metavar="FILE", help="of the model")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="for runs and features")
    parser.add_argument(
        "--model", default="tf_efficientnet_lite0", metavar="NAME", help="a timm model; default: lite0"
    )
    parser.add_argument("--document", type=Path, metavar="FILE", help="default: study.md in the output folder")
    parser.add_argument(
        "--quick", action="store_true", help="few heads and images, one epoch: a trial of the command"
    )
    parser.add_argument("--report", action="store_true", help="write the document only, from the runs that there are")
    parser.add_argument("--parts", metavar="A,B", help="frozen, long, init, grid, tuned; default: all")
    parser.add_argument("--images", type=integer, metavar="N", help="training images of the frozen parts")
    parser.add_argument("--tune-heads", metavar="A,B", help="heads that are fine-tuned; all: every head")
    parser.add_argument("--tune-seeds", type=integer, metavar="N", help="seeds of each fine-tuned head")
    parser.add_argument("--tune-images", type=integer, metavar="N", help="training images of fine-tuning")
    parser.add_argument(
        "--jobs", type=integer, default=10, metavar="N", help="heads in memory at a time; default: 10"
    )
    options = parser.parse_args()
    options.document = options.document or options.output / "study.md"
    return options


def chosen_size(options: argparse.Namespace) -> Size:
    size = QUICK if options.quick else FULL
    heads = options.tune_heads and (
        size.heads if options.tune_heads == "all" else tuple(options.tune_heads.split(","))
    )
    return replace(
        size,
        images=options.images or size.images,
        tune_heads=heads or size.tune_heads,
        tune_seeds=options.tune_seeds or size.tune_seeds,
        tune_images=options.tune_images or size.tune_images,
    )


def main() -> None:
    options = parse()
    silence_libraries()
    parts = sweeps(chosen_size(options), options)
    wanted = options.parts.split(",") if options.parts else list(parts)
    if unknown := [name for name in wanted if name not in parts]:
        print(f"benchmark: there is no part {unknown[0]}; the parts are {', '.join(parts)}", file=sys.stderr)
        sys.exit(MISTAKE)
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        status = 0 if options.report else study({name: parts[name] for name in wanted}, options.output)
        write_document(options.output, options.document, list(parts))
    except (UserError, OSError) as error:
        print(f"benchmark: {error}", file=sys.stderr)
        sys.exit(MISTAKE)
    print(f"\nwritten  {options.document}")
    sys.exit(FAILED if status else 0)


if __name__ == "__main__":
    main()
