"""Figures of a comparison as SVG: learning curves and heat maps."""

import io
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from noah_lightning.analysis.groups import Group, identity, make_labels
from noah_lightning.analysis.statistics import Entry

_INK = "#010203"  # stands for the page's text color until the figure is text itself


@contextmanager
def style() -> Iterator[None]:
    """Draw and write figures inside this: thin, small, transparent, letters as letters."""
    inked = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "noah",  # the same figure has the same text every time
        "font.size": 9,
        "axes.titlesize": 10,
        "axes.linewidth": 0.6,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.facecolor": "none",
        "figure.facecolor": "none",
        "legend.frameon": False,
        "grid.alpha": 0.25,
        "text.parse_math": False,  # a label's dollar sign is a dollar sign
        **dict.fromkeys(inked, _INK),
    }
    with matplotlib.rc_context(settings):
        yield


def as_svg(figure: Figure, name: str, title: str) -> str:
    """``<svg>…</svg>``; ``name`` sets its ids apart from other figures', ``title`` is for those who cannot see it."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].rstrip()
    svg = re.sub(
        r"\s*<metadata>.*?</metadata>|\s*<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL
    )  # page.css has it
    svg = svg.replace(' xmlns:xlink="http://www.w3.org/1999/xlink"', "").replace("xlink:href=", "href=")
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", svg)  # a list of what few readers have
    svg = svg.replace(_INK, "currentColor")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)


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
    of_seeds = [run.curve(column) for run in group.runs.values()]
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


N, R = "head.head_num", "head.key_ratio"


@dataclass(frozen=True)
class HeatMap:
    """Groups that share all but N and r."""

    title: str
    head_nums: list[int]  # rows
    key_ratios: list[float]  # columns
    top1: np.ndarray  # percent (rows, columns), NaN where there is no run


def heat_maps(entries: Sequence[Entry]) -> list[HeatMap]:
    """One for each set of groups in which both settings take two values at least."""
    sets: defaultdict[object, list[Entry]] = defaultdict(list)
    for entry in entries:
        if N in entry.group.settings and R in entry.group.settings:
            sets[identity(entry.group.settings, lambda key: key not in (N, R))].append(entry)
    full = [found for found in sets.values() if len(_values(found, N)) > 1 and len(_values(found, R)) > 1]
    rest = [{k: v for k, v in found[0].group.settings.items() if k not in (N, R)} for found in full]
    return [_map(title, found) for title, found in zip(make_labels(rest), full, strict=True)]


def _values(entries: Sequence[Entry], key: str) -> list[Any]:
    return sorted({entry.group.settings[key] for entry in entries})


def _map(title: str, entries: Sequence[Entry]) -> HeatMap:
    rows, columns = _values(entries, N), _values(entries, R)
    top1 = np.full((len(rows), len(columns)), np.nan)
    for entry in entries:
        top1[rows.index(entry.group.settings[N]), columns.index(entry.group.settings[R])] = entry.top1
    return HeatMap(title, rows, columns, top1)


def draw_heat_map(heat: HeatMap) -> Figure:
    """Cells with their number; the scale runs from the lowest to the highest of them."""
    rows, columns = heat.top1.shape
    figure = Figure(figsize=(1.6 + 0.8 * columns, 1 + 0.42 * rows), layout="constrained")
    axes = figure.subplots()
    colors = matplotlib.colormaps["viridis"]
    low, high = np.nanmin(heat.top1), np.nanmax(heat.top1)
    axes.pcolormesh(np.ma.masked_invalid(heat.top1), cmap=colors, vmin=low, vmax=high, edgecolors="none")
    for (row, column), value in np.ndenumerate(heat.top1):
        if np.isfinite(value):
            light = high > low and (value - low) / (high - low) > 0.55
            ink = "black" if light else "white"
            axes.text(column + 0.5, row + 0.5, f"{value:.2f}", ha="center", va="center", color=ink)
    axes.set_xticks(np.arange(columns) + 0.5, [f"{ratio:g}" for ratio in heat.key_ratios])
    axes.set_yticks(np.arange(rows) + 0.5, [str(number) for number in heat.head_nums])
    axes.set(xlabel="key_ratio r", ylabel="head_num N", title="mean top-1, %")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure
