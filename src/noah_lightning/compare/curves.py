"""Learning curves: a line per group, and a band from the lowest to the highest of its seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from noah_lightning.compare.groups import Group
from noah_lightning.compare.read import read_curve

# Distinguishable with red-green blindness and on light and dark paper alike.
_COLORS = ("#8a94a0", "#d1495b", "#3d7fb8", "#d9962f", "#3a9b7a", "#8f6bb3", "#b06a3b", "#c46aa4")


@dataclass(frozen=True)
class Curve:
    """Over the epochs that every seed of the group has, counted from 1."""

    label: str
    epochs: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]


def group_curve(group: Group, column: str) -> Curve | None:
    """A column of metrics.csv; None where a seed has none."""
    of_seeds = [read_curve(run, column) for run in group.runs.values()]
    epochs = sorted(set.intersection(*(set(curve) for curve in of_seeds)))
    if not epochs:
        return None
    values = [[curve[epoch] for curve in of_seeds] for epoch in epochs]
    mean = [sum(seeds) / len(seeds) for seeds in values]
    return Curve(group.short, epochs, mean, [min(seeds) for seeds in values], [max(seeds) for seeds in values])


def draw_curves(groups: Sequence[Group]) -> Figure | None:
    """Validation accuracy beside the loss in training; None where there is nothing to draw."""
    panels = [("val/top1", "validation top-1, %"), ("train/loss", "training loss")]
    curves = {column: [group_curve(group, column) for group in groups] for column, _ in panels}
    if not any(curve for found in curves.values() for curve in found):
        return None
    rows = -(-len(groups) // 2)  # of the legend
    figure = Figure(figsize=(8, 3.2 + 0.18 * rows), layout="constrained")
    handles: dict[str, Line2D] = {}
    for axes, (column, title) in zip(figure.subplots(1, 2), panels, strict=True):
        for i, curve in enumerate(curves[column]):
            if curve:
                handles[curve.label] = _draw(axes, curve, _color(i, len(groups)))
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(True)
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=2)
    return figure


def _draw(axes: Axes, curve: Curve, color: Any) -> Line2D:
    (line,) = axes.plot(
        curve.epochs, curve.mean, color=color, linewidth=1.6, marker="o" if len(curve.epochs) == 1 else ""
    )
    if curve.low != curve.high:
        axes.fill_between(curve.epochs, curve.low, curve.high, color=color, alpha=0.2, linewidth=0)
    return line


def _color(index: int, number: int) -> Any:
    """One of eight well apart; of more groups, a step along a scale without its nearly black ends."""
    if number <= len(_COLORS):
        return _COLORS[index]
    return matplotlib.colormaps["turbo"](0.1 + 0.82 * index / (number - 1))
