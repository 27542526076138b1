"""Comparison of the head laboratory with the training of whole models: 36 heads against two runs of the demo."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.report import Report, make_parser, run
from noah_lightning import cli
from noah_lightning.analysis.tables import Table
from noah_lightning.errors import RunFailed
from noah_lightning.loggers.console import duration
from noah_lightning.run_dir import RunDir

DEMO = ("experiment=demo",)
EPOCHS = 3  # of both
SETTINGS = ("head=noah", "head.head_num=1,2,4,8", "head.key_ratio=0.25,0.5,0.75", "seed=0,1,2")
JOBS = 4 * 3 * 3


def bench_lab(folder: Path, words: Sequence[str]) -> Report:
    """Train the demo with both heads, then the heads on the frozen backbone of the first one.

    Args:
        words: further settings of all runs.
    """
    seconds = {}
    for head in ("gap", "noah"):
        seconds[f"demo, head={head}"] = _timed(*DEMO, *words, f"head={head}", f"hydra.run.dir={folder / head}")
    lab = ["-m", "experiment=head_lab", "model=resnet18_quarter", f"model.weights={folder / 'gap'}", "data=digits"]
    lab += [f"recipe.epochs={EPOCHS}", "recipe.optimizer.lr_choices=[]", *SETTINGS, *words]
    lab += [f"sweep.dir={folder / 'lab'}", f"hydra.launcher.store={folder / 'features'}"]
    seconds[f"head_lab, {JOBS} heads"] = _timed(*lab)
    demos, heads = sum(list(seconds.values())[:2]), list(seconds.values())[2]
    scores = [RunDir(folder / "lab" / str(number)).results().top1 for number in range(JOBS)]
    rows = [[name, duration(value)] for name, value in seconds.items()]
    figures = [{"what": name, "seconds": value} for name, value in seconds.items()]
    conclusions = [
        f"{JOBS} heads take {heads / demos:.2f} of the time of the two demos; top-1 of {min(scores):.1f} to "
        f"{max(scores):.1f} % on frozen features"
    ]
    return Report("lab", Table(["what", "time"], rows, left=["what"]), figures, conclusions)


def _timed(*words: str) -> float:
    """Seconds of ``noah train``, from its configuration to its results."""
    started = time.perf_counter()
    if status := cli.main(["train", *words]):
        raise RunFailed(f"noah train {' '.join(words)} ended with exit status {status}")
    return time.perf_counter() - started


def main() -> None:
    parser = make_parser("The head laboratory against two trainings of the demo, on the digits.", timed=False)
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE", help="further settings of all runs")
    options = parser.parse_args()
    with TemporaryDirectory(prefix="noah_bench_") as name:
        try:
            run(lambda: bench_lab(Path(name), options.words), options.json)
        except RunFailed as error:
            print(f"benchmark: {error}", file=sys.stderr)
            sys.exit(1)


if __name__ == "__main__":
    main()
