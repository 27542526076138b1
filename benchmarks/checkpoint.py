"""Benchmark of checkpoints: time to save the state of a run, relative to the steps between two checkpoints."""

import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.noise import NoiseDataModule
from benchmarks.report import Report, make_parser, run
from benchmarks.step import BATCH, CASES, CLASSES, SETTINGS
from benchmarks.timing import spread, wait_for_device
from noah_lightning.analysis.tables import Table
from noah_lightning.callbacks.checkpoints import Checkpoints
from noah_lightning.callbacks.progress import EpochReport
from noah_lightning.config.compose import compose_config
from noah_lightning.distributed.signals import StopRequest
from noah_lightning.loggers.factory import close_loggers, make_loggers
from noah_lightning.train import make_callbacks, make_task, make_trainer

EVERY = 100  # steps between two checkpoints
STEPS = 10  # timed between two checkpoints in this benchmark


def bench_checkpoint(rounds: int) -> Report:
    """Save a ResNet-18 and its optimizer during training, as ``noah train`` does.

    Args:
        rounds: number of timed checkpoints, each after 10 steps, after one for warm-up.
    """
    case = CASES[0]
    with TemporaryDirectory(prefix="noah_bench_") as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's: few workers, a short epoch
        folder = Path(name)
        seconds = _train(case.make(), case.size, rounds, folder)
        size = max(path.stat().st_size for path in folder.rglob("*.ckpt"))
    step, save = spread([each / STEPS for each in seconds["steps"]]), spread(seconds["save"])
    shares = [each / (EVERY * step.median) for each in seconds["save"]]
    share = spread(shares)
    row = (
        case.name,
        f"{1000 * step.median:,.1f}",
        f"{1000 * save.median:,.1f} ({1000 * save.low:,.1f}–{1000 * save.high:,.1f})",
        f"{size / 1e6:,.1f} MB",
        f"{100 * share.median:.2f} % ({100 * share.low:.2f}–{100 * share.high:.2f})",
    )
    columns = ("model", "ms/step", "ms/checkpoint", "size", f"cost, every {EVERY} steps")
    figures = {"step_seconds": step.median, "save_seconds": save.median, "bytes": size, "share": share.median}
    what = f"batches of {BATCH} of {case.size} pixels, SGD with momentum, {rounds} rounds; medians (quartiles)"
    return Report("checkpoint", Table(columns, [row], left=("model",)), [figures], [what])


class _Turns:
    """Batches for the trainer; saves the state every ``STEPS`` steps."""

    def __init__(self, batches: Iterator[Any], rounds: int) -> None:
        self.batches, self.rounds = batches, rounds
        self.save: Any = None
        self.seconds: dict[str, list[float]] = {"steps": [], "save": []}

    def __len__(self) -> int:
        return (self.rounds + 1) * STEPS + 1

    def __iter__(self) -> Iterator[Any]:
        for turn in range(self.rounds + 1):
            begin = time.perf_counter()
            for _ in range(STEPS):
                yield next(self.batches)
            wait_for_device()
            change = time.perf_counter()
            self.save()
            if turn > 0:  # the first one is for warm-up
                self.seconds["steps"].append(change - begin)
                self.seconds["save"].append(time.perf_counter() - change)
        yield next(self.batches)  # so that the trainer returns after the last turn


def _train(model: torch.nn.Module, size: int, rounds: int, folder: Path) -> dict[str, list[float]]:
    config = compose_config([*SETTINGS, "checkpoint.every_n_steps=1000000"])
    data = NoiseDataModule(size, BATCH, (rounds + 1) * STEPS + 1, CLASSES)
    data.setup("fit")
    task = make_task(config, model, BATCH)
    loggers = make_loggers(config, folder)
    callbacks = make_callbacks(config, folder, loggers, EpochReport(), data, StopRequest())
    trainer = make_trainer(config, folder, logger=loggers, callbacks=callbacks)
    checkpoints = next(callback for callback in callbacks if isinstance(callback, Checkpoints))
    data.given_batches = turns = _Turns(iter(data.loader()), rounds)
    turns.save = lambda: checkpoints.save(trainer)
    trainer.fit(task, datamodule=data)
    close_loggers(loggers, None)
    return turns.seconds


def main() -> None:
    options = make_parser("Time to save a checkpoint, relative to the steps between two.").parse_args()
    run(lambda: bench_checkpoint(options.rounds), options.json)


if __name__ == "__main__":
    main()
