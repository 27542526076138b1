"""Benchmark of training steps, compared with a bare PyTorch loop."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.report import Report, make_parser, run
from benchmarks.timing import ratio, spread
from benchmarks.trainer import BATCH, CLASSES, NoiseDataModule, prepared_run
from noah_lightning.analysis.tables import Table
from noah_lightning.config.schema import OptimizerSettings
from noah_lightning.models.classifier import create_model
from noah_lightning.task import make_optimizer

BARE, OURS = "bare", "ours"


@dataclass(frozen=True)
class Case:
    """A model, the size of its images in pixels, and the number of steps per turn."""

    name: str
    make: Callable[[], nn.Module]
    size: int
    steps: int


CASES = (
    Case("ResNet-18", lambda: create_model("resnet18", num_classes=CLASSES), 64, 5),
    # Almost no arithmetic, so this measures the overhead of Python.
    Case("one linear layer", lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, CLASSES)), 8, 200),
)


@dataclass(frozen=True)
class Comparison:
    """Seconds of each turn, and both models at the end, which must be identical."""

    seconds: dict[str, list[float]]
    models: dict[str, nn.Module]


def bench_step(rounds: int) -> Report:
    """Train the same model on the same batches in both ways, alternately, with the same optimizer.

    Ours is a run of Lightning's trainer with the task, data module, callbacks and logger of ``noah train``; all that
    happens between two batches is timed. Validation and checkpoints follow after the timed turns.

    Args:
        rounds: number of timed turns of each way, after one for warm-up.
    """
    figures = [_figures(case, compare(case, rounds).seconds) for case in CASES]
    columns = ("model", "bare ms/step", "ours ms/step", "ours - bare", "ours / bare")
    steps = " and ".join(str(case.steps) for case in CASES)
    what = f"batches of {BATCH}, {rounds} rounds of {steps} steps; medians (quartiles)"
    return Report("step", Table(columns, [_row(figure) for figure in figures], left=("model",)), figures, [what])


def compare(case: Case, rounds: int) -> Comparison:
    """Train one model in both ways, alternately."""
    torch.manual_seed(0)
    ours = case.make()
    bare = copy.deepcopy(ours)
    with prepared_run(ours, case.size, (rounds + 1) * case.steps + 1) as run:
        bare.to(run.trainer.strategy.root_device)
        loop = bare_loop(bare, run.task.optimizer_settings, run.data, iter(run.data.loader()))
        turns = run.in_turns(case.steps, rounds, lambda: [next(loop) for _ in range(case.steps)])
        next(loop)  # the trainer's last step
    return Comparison({OURS: turns.seconds, BARE: turns.other_seconds}, {OURS: ours, BARE: bare})


def bare_loop(
    model: nn.Module, settings: OptimizerSettings, data: NoiseDataModule, batches: Iterator[Any]
) -> Iterator[None]:
    """A minimal training loop, one step per ``next``."""
    optimizer = make_optimizer(model.train(), settings)
    device = next(model.parameters()).device
    for images, labels in batches:
        images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(data.on_device.normalize(images)), labels)
        loss.backward()
        optimizer.step()
        yield


def _figures(case: Case, seconds: dict[str, list[float]]) -> dict[str, Any]:
    per_step = {name: [each / case.steps for each in seconds[name]] for name in (BARE, OURS)}
    more = [ours - bare for ours, bare in zip(per_step[OURS], per_step[BARE], strict=True)]
    spreads = {
        "bare_seconds": spread(per_step[BARE]),
        "ours_seconds": spread(per_step[OURS]),
        "more_seconds": spread(more),
        "ratio": ratio(seconds, OURS, BARE),
    }
    figures: dict[str, Any] = {"model": case.name, "steps": case.steps}
    for key, one in spreads.items():
        figures |= {key: one.median, f"{key}_quartiles": [one.low, one.high]}
    return figures


def _row(figure: dict[str, Any]) -> tuple[str, ...]:
    def cell(key: str, scale: int, digits: int) -> str:
        median, low, high = (f"{scale * value:.{digits}f}" for value in (figure[key], *figure[f"{key}_quartiles"]))
        return f"{median} ({low}–{high})"

    times = [cell(key, 1000, 2) for key in ("bare_seconds", "ours_seconds", "more_seconds")]
    return (figure["model"], *times, cell("ratio", 1, 3))


def main() -> None:
    options = make_parser("Training steps compared with a bare PyTorch loop.").parse_args()
    run(lambda: bench_step(options.rounds), options.json)


if __name__ == "__main__":
    main()
