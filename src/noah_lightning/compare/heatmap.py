"""N × r: mean top-1 over the number of heads and the share of keys, where both vary."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from noah_lightning.compare.groups import identity, make_labels
from noah_lightning.compare.measure import Entry

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
