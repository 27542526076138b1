"""Figures of a comparison: learning curves, heat maps, ranks, and accuracy against cost."""

import io
from base64 import b64encode
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from noah_lightning.analysis.cost_plots import COSTS, NAMED, draw_cost
from noah_lightning.analysis.critical_difference import BARS, draw_critical_difference
from noah_lightning.analysis.groups import Group, identity, make_labels
from noah_lightning.analysis.statistics import Comparison

N, R = "head.head_num", "head.key_ratio"
PNG_DPI = 160

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
class Picture:
    """A figure with its texts in the page and the name of its file."""

    name: str
    heading: str
    description: str  # for those who cannot see it
    caption: str
    figure: Figure

    @matplotlib.rc_context(STYLE)
    def uri(self) -> str:
        """Data URI of SVG."""
        file = io.BytesIO()
        self.figure.savefig(file, format="svg", metadata={"Date": None})
        return f"data:image/svg+xml;base64,{b64encode(file.getvalue()).decode()}"

    @matplotlib.rc_context(STYLE)
    def write(self, folder: Path) -> None:
        """Write ``NAME.png``; raises OSError."""
        self.figure.savefig(folder / f"{self.name}.png", dpi=PNG_DPI)


@dataclass(frozen=True)
class HeatMap:
    """Groups that share all settings but N and r."""

    title: str
    head_nums: list[float]  # rows
    key_ratios: list[float]  # columns
    top1: np.ndarray  # percent (rows, columns), NaN if there is no run; mAP of multi-label runs
    metric: str


@matplotlib.rc_context(STYLE)
def draw_figures(comparison: Comparison) -> list[Picture]:
    """Heat maps, learning curves, and for more than two groups critical differences and accuracy against cost."""
    groups = [entry.group for entry in comparison.entries]
    pictures = []
    for number, heat in enumerate(heat_maps(groups), start=1):
        about = "heat map of the mean over head_num and key_ratio"
        pictures.append(Picture(f"heat-map-{number}", "Heads and keys", about, heat.title, _draw_heat_map(heat)))
    if curves := draw_curves(groups):
        about = "validation metric and training loss by epoch"
        caption = "Means over seeds; the bands run from the lowest to the highest seed."
        pictures.append(Picture("learning-curves", "Learning curves", about, caption, curves))
    if ranking := comparison.ranking:
        about = "average ranks of the head settings on an axis"
        caption = f"Average ranks over {ranking.blocks} blocks, the best at the left. {BARS}"
        figure = draw_critical_difference(ranking)
        pictures.append(Picture("critical-difference", "Average ranks", about, caption, figure))
    if len(groups) > 2:
        pictures += _cost_pictures(groups)
    return pictures


def _cost_pictures(groups: Sequence[Group]) -> list[Picture]:
    """Accuracy against parameters and milliseconds, for each data set."""
    sets: defaultdict[tuple[str, str], list[Group]] = defaultdict(list)
    for group in groups:
        sets[str(group.settings.get("data.name")), str(group.settings.get("data.root"))].append(group)
    pictures = []
    for number, ((data, _), found) in enumerate(sets.items(), start=1):
        for cost in COSTS:
            caption = f"data={data}. Means over seeds; error bars are standard deviations over seeds."
            if len(found) > NAMED:
                caption += f" Labels are on the {NAMED} highest of {len(found)}."
            about = f"top-1 against {cost.label}"
            figure = draw_cost(found, cost)
            pictures.append(Picture(f"accuracy-{cost.name}-{number}", "Accuracy and cost", about, caption, figure))
    return pictures


def draw_curves(groups: Sequence[Group]) -> Figure | None:
    """Validation accuracy or mean average precision, and training loss by epoch; None if no group has any."""
    kinds = sorted({group.multilabel for group in groups})
    panels = [("val/map", "validation mAP, %") if kind else ("val/top1", "validation top-1, %") for kind in kinds]
    panels.append(("train/loss", "training loss"))
    rows = -(-len(groups) // 2)  # of the legend
    figure = Figure(figsize=(8, 3.2 + 0.18 * rows), layout="constrained")
    lines: dict[str, Line2D] = {}
    for axes, (column, title) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
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
        maps.append(HeatMap(title, head_nums.tolist(), key_ratios.tolist(), top1, found[0].metric))
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
    axes.set(xlabel="key_ratio r", ylabel="head_num N", title=f"mean {heat.metric}, %")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure
