"""Scatter plots of accuracy against cost, with labels that do not overlap."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, Formatter, LogLocator, NullFormatter, StrMethodFormatter

from noah_lightning.analysis.critical_difference import INK, short_label
from noah_lightning.analysis.groups import BASELINE, Group, short_labels

COLORS = {BASELINE: "#5d6672", "noah": "#d1495b"}
OTHER = "#3d7fb8"
LINE_COLOR = "#8a94a0"
NAMED = 30  # of more points, only the highest have a label
LOWEST, HIGHEST = 1e-9, 10**15  # an untrusted run may contain any number; others are not shown
LOG = 5  # ratio of the largest to the smallest cost from which the axis is logarithmic
MARKER, BAR, LINE = 5.0, 1.5, 0.5  # half the widths in points of markers, error bars and connecting lines
CONNECTED = 14  # points between a marker and its label from which a line connects them
SWEEPS, TRIED, STEPS = 4, 60, 12  # over all labels; places with a line; boxes along a line
# Offsets in points of the near edge of a label: to the right and left in many heights, or right above and below.
PLACES = np.array(
    [(x, y) for x in (8, -8, 16, -16, 30, -30, 48, -48, 70, -70) for y in range(-92, 93, 4)]
    + [(0, y) for y in (9, -9, 14, -14, 20, -20)],
    float,
)


@dataclass(frozen=True)
class Cost:
    """What the horizontal axis shows."""

    name: str  # in names of files
    label: str
    value: Callable[[Group], float]
    ticks: Callable[[], Formatter]  # for one axis each


def _parameters(group: Group) -> float:
    return float(min(next(iter(group.outcomes.values())).parameters, HIGHEST))


def _milliseconds(group: Group) -> float:
    speed = group.mean("images_per_second")
    return 1000 / speed if speed > 0 else np.nan


COSTS = (
    Cost("parameters", "parameters", _parameters, partial(EngFormatter, sep="")),
    Cost("milliseconds", "milliseconds per image, training", _milliseconds, partial(StrMethodFormatter, "{x:,.12g}")),
)


def draw_cost(groups: Sequence[Group], cost: Cost) -> Figure:
    """Mean top-1 or mAP against cost, a labeled point for each group; bars are standard deviations over seeds."""
    figure = Figure(figsize=(8, 4.6 + 0.03 * len(groups)))
    axes = figure.add_axes((0.08, 0.12, 0.89, 0.85))
    x = np.array([cost.value(group) for group in groups])
    shown = (x > LOWEST) & (x < HIGHEST)
    groups, x = [group for group, show in zip(groups, shown, strict=True) if show], x[shown]
    y = np.array([group.top1 for group in groups])
    error = np.array([group.deviation or 0 for group in groups])
    for group, value, top1, deviation in zip(groups, x, y, error, strict=True):
        color = COLORS.get(group.head, OTHER)
        axes.errorbar(value, top1, deviation, fmt="o", color=color, markersize=5.5, elinewidth=1, alpha=0.9)
    axes.set(xlabel=cost.label, ylabel=f"{groups[0].metric if groups else 'top-1'}, %")
    axes.margins(0.1, 0.08)
    axes.grid(True)
    if len(x) and x.max() / x.min() >= LOG:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(cost.ticks())
    axes.autoscale_view()  # labels are placed within the final limits
    named = {*np.argsort(-y, kind="stable")[:NAMED]}
    labels = short_labels([group.settings for group in groups])
    texts = [short_label(label) if i in named else "" for i, label in enumerate(labels)]
    _label(axes, np.stack([x, y, error], axis=1), texts)
    return figure


def _label(axes: Axes, points: np.ndarray, texts: Sequence[str]) -> None:
    """Label ``points``, float (points, 3) of x, y and error; far labels are connected with their point."""
    in_points = 72 / axes.figure.dpi
    at = axes.transData.transform(points[:, :2]) * in_points
    ends = axes.transData.transform(points[:, :2] + points[:, 2:] * [0, 1]) * in_points
    artists = [axes.text(x, y, text, color=INK) for (x, y, _), text in zip(points, texts, strict=True)]
    boxes = [artist.get_window_extent() for artist in artists]
    sizes = np.array([(box.width, box.height) for box in boxes]).reshape(-1, 2) * in_points
    offsets = place_labels(at, sizes, ends[:, 1] - at[:, 1], np.array(axes.get_window_extent().extents) * in_points)
    for artist, point, offset in zip(artists, points[:, :2], offsets, strict=True):
        artist.remove()
        x, y = np.sign(offset).astype(int)
        line = {"arrowstyle": "-", "color": LINE_COLOR, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 3}
        axes.annotate(
            artist.get_text(),
            point,
            offset,
            textcoords="offset points",
            ha=("center", "left", "right")[x],
            va="center" if x else ("center", "bottom", "top")[y],
            color=INK,
            arrowprops=line | {"relpos": (0 if x > 0 else 1, 0.5)} if np.hypot(*offset) > CONNECTED else None,
        )


def place_labels(at: np.ndarray, sizes: np.ndarray, errors: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Offsets of the near edges of labels from their points, so that labels, markers and connecting lines keep apart.

    Each label in turn takes the place where it covers least and is nearest, given the others, a few times over.

    Args:
        at: float (labels, 2), the points; this and all sizes in typographic points.
        sizes: float (labels, 2), widths and heights of the labels.
        errors: float (labels,), half the heights of the error bars.
        bounds: float (4,), left, lower, right and upper edge of the axes.
    """
    markers = _boxes(at, np.full_like(at, MARKER))
    bars = _boxes(at, np.stack([np.full_like(errors, BAR), errors], axis=1))
    outward = np.sign(PLACES) * np.where(PLACES[:, :1] != 0, [1, 0], [0, 1])  # from the edge to the center
    offsets, placed = np.zeros_like(at), dict[int, np.ndarray]()  # boxes of a label and of its connecting line
    for i in [*np.lexsort((at[:, 0], -at[:, 1]))] * SWEEPS:
        placed.pop(i, None)
        others = np.concatenate([np.delete(markers, i, axis=0), np.delete(bars, i, axis=0), *placed.values()])
        labels = _boxes(at[i] + PLACES + outward * sizes[i] / 2, sizes[i] / 2)
        covered = _overlap(labels, np.concatenate([others, bars[[i]]]))
        outside = (bounds[:2] - labels[:, :2]).clip(0).sum(axis=1) + (labels[:, 2:] - bounds[2:]).clip(0).sum(axis=1)
        cost = 3 * covered + 100 * outside + np.abs(PLACES) @ [1, 1.5]
        good = np.argsort(cost, kind="stable")[:TRIED]  # of these, how much their connecting line covers
        lines = _boxes(at[i] + np.linspace(0.3, 0.95, STEPS)[:, None] * PLACES[good, None], LINE)  # (good, steps, 4)
        lines[np.hypot(*PLACES[good].T) <= CONNECTED] = np.nan
        crossed = _overlap(lines.reshape(-1, 4), others).reshape(-1, STEPS).sum(axis=1)
        best = int(np.argmin(cost[good] + 5 * crossed))
        offsets[i] = PLACES[good[best]]
        placed[i] = np.concatenate([labels[good[[best]]], lines[best, np.isfinite(lines[best, :, 0])]])
    return offsets


def _boxes(centers: np.ndarray, half: np.ndarray | float) -> np.ndarray:
    """Left, lower, right and upper edges, float (..., 4)."""
    return np.concatenate([centers - half, centers + half], axis=-1)


def _overlap(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Area of each box, float (boxes, 4), that is in ``others``, float (others, 4); boxes of NaN are nowhere."""
    width, height = (
        np.fmax(np.minimum.outer(boxes[:, i + 2], others[:, i + 2]) - np.maximum.outer(boxes[:, i], others[:, i]), 0)
        for i in (0, 1)
    )
    area: np.ndarray = (width * height).sum(axis=1)
    return area
