"""Figures of a comparison as SVG images: learning curves and heat maps."""

import io
from base64 import b64encode
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from noah_lightning.analysis.groups import Group, identity, make_labels

N, R = "head.head_num", "head.key_ratio"

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text instead of paths: smaller files
    "svg.hashsalt": "noah",  # reproducible output
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "grid.alpha": 0.25,
    "text.parse_math": False,  # labels may contain dollar signs
}

# Distinguishable with red-green blindness.
_COLORS = ("#8a94a0", "#d1495b", "#3d7fb8", "#d9962f", "#3a9b7a", "#8f6bb3", "#b06a3b", "#c46aa4")


@dataclass(frozen=True)
class HeatMap:
    """Groups that share all settings but N and r."""

    title: str
    head_nums: list[float]  # rows
    key_ratios: list[float]  # columns
    top1: np.ndarray  # percent (rows, columns), NaN if there is no run


@matplotlib.rc_context(STYLE)
def draw_figures(groups: Sequence[Group]) -> tuple[list[tuple[str, str]], str | None]:
    """Title and image of each heat map, and the learning curves or None; images are data URIs of SVG."""
    maps = [(heat.title, _data_uri(_draw_heat_map(heat))) for heat in heat_maps(groups)]
    curves = draw_curves(groups)
    return maps, _data_uri(curves) if curves else None


def _data_uri(figure: Figure) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{b64encode(file.getvalue()).decode()}"


def draw_curves(groups: Sequence[Group]) -> Figure | None:
    """Validation accuracy and training loss by epoch; None if no group has either."""
    panels = [("val/top1", "validation top-1, %"), ("train/loss", "training loss")]
    rows = -(-len(groups) // 2)  # of the legend
    figure = Figure(figsize=(8, 3.2 + 0.18 * rows), layout="constrained")
    lines: dict[str, Line2D] = {}
    for axes, (column, title) in zip(figure.subplots(1, 2), panels, strict=True):
        for group, color in zip(groups, _colors(len(groups)), strict=True):
            curve = group_curve(group, column)
            if curve is None:
                continue
            epochs, mean, low, high = curve
            marker = "o" if len(epochs) == 1 else ""
            [lines[group.short]] = axes.plot(epochs, mean, color=color, linewidth=1.6, marker=marker)
            if (low < high).any():
                axes.fill_between(epochs, low, high, color=color, alpha=0.2, linewidth=0)
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(True)
    figure.legend(list(lines.values()), list(lines), loc="outside lower center", ncols=2)
    return figure if lines else None


def _colors(number: int) -> Sequence[Any]:
    """Distinct colors; of more than eight, colors of a scale without its almost black ends."""
    if number <= len(_COLORS):
        return _COLORS[:number]
    return list(matplotlib.colormaps["turbo"](np.linspace(0.1, 0.92, number)))


def group_curve(group: Group, column: str) -> np.ndarray | None:
    """A column of metrics.csv over the epochs that all seeds have; None if there are none.

    Returns:
        float (4, epochs): epoch from 1, and mean, minimum and maximum over the seeds.
    """
    of_seeds = [run.curve(column) for run in group.runs.values()]
    epochs = sorted(set.intersection(*map(set, of_seeds)))
    if not epochs:
        return None
    values = np.array([[curve[epoch] for epoch in epochs] for curve in of_seeds])  # (seeds, epochs)
    return np.stack([np.array(epochs, float), values.mean(axis=0), values.min(axis=0), values.max(axis=0)])


def heat_maps(groups: Sequence[Group]) -> list[HeatMap]:
    """A heat map for each set of groups in which N and r each have at least two values."""
    sets: defaultdict[Hashable, list[Group]] = defaultdict(list)
    for group in groups:
        if all(_is_plotted(group.settings.get(key)) for key in (N, R)):
            sets[identity(group.settings, without=(N, R))].append(group)
    full = [found for found in sets.values() if all(len({g.settings[key] for g in found}) > 1 for key in (N, R))]
    shared = [{k: v for k, v in found[0].settings.items() if k not in (N, R)} for found in full]
    maps = []
    for title, found in zip(make_labels(shared), full, strict=True):
        head_nums, rows = np.unique([g.settings[N] for g in found], return_inverse=True)
        key_ratios, columns = np.unique([g.settings[R] for g in found], return_inverse=True)
        top1 = np.full((len(head_nums), len(key_ratios)), np.nan)
        top1[rows, columns] = [g.top1 for g in found]
        maps.append(HeatMap(title, head_nums.tolist(), key_ratios.tolist(), top1))
    return maps


def _is_plotted(value: object) -> bool:
    """Whether a setting is a number; an untrusted run directory may contain any value."""
    return isinstance(value, int | float) and 0 < value < 1e9


def _draw_heat_map(heat: HeatMap) -> Figure:
    """Heat map with the value in each cell; colors range from the lowest to the highest value."""
    rows, columns = heat.top1.shape
    figure = Figure(figsize=(1.6 + 0.8 * columns, 1 + 0.42 * rows), layout="constrained")
    axes = figure.subplots()
    low, high = np.nanmin(heat.top1), np.nanmax(heat.top1)
    axes.pcolormesh(np.ma.masked_invalid(heat.top1), cmap="viridis", vmin=low, vmax=high)
    for (row, column), value in np.ndenumerate(heat.top1):
        if np.isfinite(value):
            ink = "black" if value - low > 0.55 * (high - low) else "white"
            axes.text(column + 0.5, row + 0.5, f"{value:.2f}", ha="center", va="center", color=ink)
    axes.set_xticks(np.arange(columns) + 0.5, [f"{ratio:g}" for ratio in heat.key_ratios])
    axes.set_yticks(np.arange(rows) + 0.5, [f"{number:g}" for number in heat.head_nums])
    axes.set(xlabel="key_ratio r", ylabel="head_num N", title="mean top-1, %")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure
