"""Picture of average ranks and critical differences, as in Demšar (2006), Statistical comparisons of classifiers."""

from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from noah_lightning.analysis.ranking import Ranking

BARS = "Bars join settings that do not differ significantly (Nemenyi, 5 %)."
INK, FAINT, BAR = "#1d2430", "#8a94a0", "#d1495b"
WIDTH, AXIS, ROW, LEVEL = 8.0, 4.2, 0.215, 0.105  # inches: figure, least length of the axis, a label, a bar
TOP, GAP = 0.75, 0.12  # inches: from the top to the axis, and around labels
LONGEST = 60  # characters of a label


def short_label(label: str) -> str:
    """A label for a figure: without ``head=``, and cut if it is very long."""
    text = label.removeprefix("head=")
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def draw_critical_difference(ranking: Ranking) -> Figure:
    """Average ranks on an axis, the best at the left; bars join settings that do not differ significantly."""
    figure = Figure()
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    ranks = [*ranking.ranks.values()]
    half = (len(ranks) + 1) // 2  # labels at the left
    texts = [f"{short_label(label)}   {rank:.2f}" for label, rank in [*ranking.ranks.items()][:half]]
    texts += [f"{rank:.2f}   {short_label(label)}" for label, rank in [*ranking.ranks.items()][half:]]
    margins = [_widest(axes, part) + 2 * GAP for part in (texts[:half], texts[half:])]
    width = max(WIDTH, sum(margins) + AXIS)
    levels = stack(ranking.cliques)
    bars = TOP + 0.16 + LEVEL * (max(levels, default=-1) + 1)  # their lower end
    height = bars + 0.15 + half * ROW
    figure.set_size_inches(width, height)
    axes.set(xlim=(0, width), ylim=(height, 0))

    def place(rank: float) -> float:
        return margins[0] + (rank - 1) / (len(ranks) - 1) * (width - sum(margins))

    _draw_axis(axes, [place(1 + i) for i in range(len(ranks))])
    _draw_ruler(axes, place, ranking)
    for level, (first, last) in zip(levels, ranking.cliques, strict=True):
        y = TOP + 0.16 + LEVEL * level
        axes.plot([place(first) - 0.04, place(last) + 0.04], [y, y], color=BAR, linewidth=3.2, zorder=3)
    for i, (rank, text) in enumerate(zip(ranks, texts, strict=True)):
        left = i < half
        x, y = place(rank), bars + 0.15 + ROW * (i if left else len(ranks) - 1 - i)
        end = margins[0] - GAP if left else width - margins[1] + GAP
        axes.plot([x, x, end], [TOP, y, y], color=FAINT, linewidth=0.7, solid_joinstyle="round", zorder=1)
        axes.plot([x], [TOP], "o", color=INK, markersize=3.5, zorder=4)
        axes.text(end + (-0.05 if left else 0.05), y, text, ha="right" if left else "left", va="center", color=INK)
    return figure


def stack(cliques: Sequence[tuple[float, float]]) -> list[int]:
    """The level of each bar, so that bars of one level do not touch; sorted by their first rank."""
    ends: list[float] = []  # of each level
    levels = []
    for first, last in cliques:
        level = next((i for i, end in enumerate(ends) if first > end), len(ends))
        ends[level : level + 1] = [last]
        levels.append(level)
    return levels


def _widest(axes: Axes, texts: Sequence[str]) -> float:
    """Width in inches of the widest text."""
    widths = []
    for text in texts:
        artist = axes.text(0, 0, text)
        widths.append(artist.get_window_extent().width / axes.figure.dpi)
        artist.remove()
    return max(widths)


def _draw_axis(axes: Axes, ticks: Sequence[float]) -> None:
    axes.plot([ticks[0], ticks[-1]], [TOP, TOP], color=INK, linewidth=1, zorder=2)
    step = -(-len(ticks) // 20)  # of many ranks, not every one has a number
    for i in range(0, len(ticks), step):
        axes.plot([ticks[i]] * 2, [TOP - 0.06, TOP], color=INK, linewidth=0.8)
        axes.text(ticks[i], TOP - 0.09, str(i + 1), ha="center", va="bottom", color=INK)


def _draw_ruler(axes: Axes, place: Callable[[float], float], ranking: Ranking) -> None:
    """The critical difference as a length, if it fits the axis."""
    size = ranking.test.critical_difference
    text = f"critical difference {size:.2f}"
    if size > len(ranking.ranks) - 1:
        axes.text(place(1), 0.3, f"{text}, longer than the axis", va="bottom", color=INK)
        return
    ends = [place(1), place(1 + size)]
    axes.plot(ends, [0.36, 0.36], color=BAR, linewidth=1.2)
    for x in ends:
        axes.plot([x, x], [0.31, 0.41], color=BAR, linewidth=1.2)
    axes.text(ends[0], 0.28, text, va="bottom", color=INK)
