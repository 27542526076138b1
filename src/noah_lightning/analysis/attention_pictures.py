"""Pictures of attention and contributions over images: of training, of ``noah demo`` and of ``noah attention``.

Shapes: B images, H × W pixels, N attention blocks, K classes, L row-major positions of the feature map.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from noah_lightning.models.feature_extractor import grid_shape

if TYPE_CHECKING:  # matplotlib takes half a second to import, and most runs draw nothing
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LONGEST_TITLE = 18  # characters above a small image
COLORS = ("#9aa5b1", "#d1495b", "#30638e", "#edae49")  # one per head, in the order given


def draw_attention(
    images: Tensor, labels: Sequence[int], guesses: Sequence[int], class_names: Sequence[str], attention: Tensor
) -> np.ndarray:
    """The images in a row, and below each the attention over it: RGB, uint8 (height, width, 3).

    Args:
        images: uint8 (B, 3, H, W).
        labels: the true classes.
        guesses: the most probable classes.
        class_names: in label order.
        attention: (B, L), over the row-major positions of the feature map.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2 * len(images), 4.6), layout="constrained")
    axes = figure.subplots(2, len(images), squeeze=False)
    for b, (above, below) in enumerate(axes.T):
        _draw_pair(above, below, images[b], attention[b])
        above.set_title(class_names[labels[b]][:LONGEST_TITLE])
        color = "black" if guesses[b] == labels[b] else COLORS[1]
        below.set_title(class_names[guesses[b]][:LONGEST_TITLE], color=color)
    axes[0, 0].set_ylabel("image")
    axes[1, 0].set_ylabel("attention of the guess")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def draw_comparison(
    path: Path,
    images: Tensor,
    labels: Sequence[int],
    class_names: Sequence[str],
    probabilities: Mapping[str, Tensor],
    attention: Tensor,
) -> None:
    """A row per image: the image, every head's class probabilities, and one head's attention over the image.

    Args:
        path: PNG to write.
        images, labels, class_names, attention: as for :func:`draw_attention`.
        probabilities: of each head, (B, K); at most ten classes are drawn, the most probable ones of all heads.
    """
    from matplotlib.figure import Figure

    highest = torch.stack([p.amax(dim=0) for p in probabilities.values()]).sum(dim=0)
    shown = sorted(highest.topk(min(10, len(highest))).indices.tolist())
    figure = Figure(figsize=(9, 2.1 * len(images)), layout="constrained")
    axes = figure.subplots(len(images), 3, width_ratios=(1, 2, 1), squeeze=False)
    width = 0.8 / len(probabilities)  # of a bar
    for b, (left, middle, right) in enumerate(axes):
        _draw_pair(left, right, images[b], attention[b])
        left.set_ylabel(f"class {class_names[labels[b]]}", fontsize=11)
        for i, (head, values) in enumerate(probabilities.items()):
            places = np.arange(len(shown)) + (i - (len(probabilities) - 1) / 2) * width
            middle.bar(places, values[b, shown].numpy(), width, label=head, color=COLORS[i % len(COLORS)])
        middle.set(ylim=(0, 1), yticks=(0, 0.5, 1))
        middle.spines[["top", "right"]].set_visible(False)
        middle.set_xticks(range(len(shown)), [class_names[k] for k in shown])
        for tick, k in zip(middle.get_xticklabels(), shown, strict=True):
            tick.set_fontweight("bold" if k == labels[b] else "normal")
    titles = ("image", "class probabilities", "attention of NOAH\nto its best class")
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title)
    figure.legend(*axes[0, 1].get_legend_handles_labels(), loc="outside lower center", ncols=len(probabilities))
    figure.savefig(path, dpi=110)


def _draw_pair(plain: "Axes", covered: "Axes", image: Tensor, attention: Tensor) -> None:
    """An image (3, H, W), and again under its attention (L,), enlarged smoothly."""
    picture = image.movedim(0, 2).numpy()  # (3, H, W) -> (H, W, 3)
    for axis in (plain, covered):
        axis.imshow(picture)
        axis.set(xticks=[], yticks=[])
    covered.imshow(_enlarged(attention, *picture.shape[:2]), cmap="inferno", alpha=0.6)


Predictions = Sequence[tuple[str, float]]


@dataclass(frozen=True)
class ClassMaps:
    """What is drawn of one class, or of the contrast of two."""

    title: str  # such as "predicted: cat"
    contribution: Tensor  # (L,)
    logit: float  # or the difference of two
    attention: Mapping[int, Tensor]  # (L,) of each block, by its number
    probability: float | None = None

    @property
    def heading(self) -> str:
        """``predicted: cat   91.0 %   contributions sum to the logit, 7.31``"""
        probability = "" if self.probability is None else f"   {100 * self.probability:.1f} %"
        what = "difference of the logits" if self.probability is None else "logit"
        value = f"{self.logit:.2f}".replace("-", "−")
        return f"{shorten(self.title, 60, placeholder='…')}{probability}   contributions sum to the {what}, {value}"


def draw_explanation(
    image: Tensor, heading: str, predictions: Predictions, true: Collection[str], rows: Sequence[ClassMaps]
) -> "Figure":
    """An image and its predictions, and below for each class the contributions and the attention of each block.

    Contributions have the same colors in all rows: red for a class, blue against it, the bare image for nothing.
    The attention of each block has colors of its own, from zero to its peak.

    Args:
        image: uint8 (3, H, W), as the model saw it.
        heading: above the image.
        predictions: names and probabilities of the most probable classes.
        true: names of the true classes, which are printed bold; empty if they are not known.
        rows: one or more.
    """
    import matplotlib

    with matplotlib.rc_context({"text.parse_math": False}):  # names may contain dollar signs
        return _draw_explanation(image, heading, predictions, true, rows)


def _draw_explanation(
    image: Tensor, heading: str, predictions: Predictions, true: Collection[str], rows: Sequence[ClassMaps]
) -> "Figure":
    from matplotlib.figure import Figure

    columns = max(4, 1 + max(len(row.attention) for row in rows))
    panel, size = 2.15, image.shape[1:]
    height = panel * size[0] / size[1]
    figure = Figure(figsize=(panel * columns + 0.5, (height + 0.65) * (len(rows) + 1)), layout="constrained")
    first, *others = figure.subfigures(len(rows) + 1, 1, squeeze=False)[:, 0]
    _draw_predictions(first, image, heading, predictions, true, columns)
    largest = max(max(float(row.contribution.abs().max()) for row in rows), 1e-12)
    for part, row in zip(others, rows, strict=True):
        part.suptitle(f"{row.heading}\n", x=0.01, ha="left", fontsize=10, linespacing=0.5)
        axes = part.subplots(1, columns, squeeze=False)[0]
        _draw_contribution(axes[0], image, row.contribution, largest)
        for axis, (block, attention) in zip(axes[1:], row.attention.items(), strict=False):
            axis.imshow(_gray(image), cmap="gray", vmin=0, vmax=1)
            highest = max(float(attention.max()), 2 / len(attention))  # even attention is neither bright nor dark
            colors: dict[str, Any] = {"cmap": "inferno", "vmin": 0, "vmax": highest, "alpha": 0.7}
            axis.imshow(_enlarged(attention, *size), interpolation="bilinear", **colors)
            axis.set_title(f"attention {block}, peak {100 * float(attention.max()):.0f} %", fontsize=9)
        for axis in axes:
            axis.set(xticks=[], yticks=[])
        for axis in axes[1 + len(row.attention) :]:
            axis.set_axis_off()
    return figure


def _draw_predictions(
    part: Any, image: Tensor, heading: str, predictions: Predictions, true: Collection[str], columns: int
) -> None:
    """The bare image, and on its right bars of the most probable classes."""
    left, right = part.subplots(1, 2, width_ratios=(1, columns - 1))
    left.imshow(image.movedim(0, 2).numpy())
    left.set(xticks=[], yticks=[])
    part.suptitle(heading, x=0.01, ha="left", fontsize=11, fontweight="bold")
    names, values = zip(*predictions, strict=True)
    colors = [COLORS[2] if name in true else COLORS[0] for name in names]
    right.barh(range(len(names)), values, height=0.5, color=colors)
    right.set(xlim=(0, 1.6), ylim=(len(names) - 0.5, -0.5), xticks=[])
    right.set_yticks(range(len(names)), [shorten(name, 32, placeholder="…") for name in names], fontsize=9)
    for place, (name, value) in enumerate(predictions):
        right.text(value + 0.01, place, f"{100 * value:.1f} %", va="center", fontsize=9)
        right.get_yticklabels()[place].set_fontweight("bold" if name in true else "normal")
    right.tick_params(length=0)
    right.spines[:].set_visible(False)


def _draw_contribution(axis: "Axes", image: Tensor, contribution: Tensor, largest: float) -> None:
    """Contributions (L,) over the image in gray: red above zero, blue below, the more opaque the larger."""
    values = _enlarged(contribution, *image.shape[1:])
    opacity = np.clip(np.abs(values) / largest, 0, 1) ** 0.6
    axis.imshow(_gray(image), cmap="gray", vmin=0, vmax=1)
    colors: dict[str, Any] = {"cmap": "bwr", "vmin": -largest, "vmax": largest, "interpolation": "bilinear"}
    axis.imshow(values, alpha=opacity, **colors)
    axis.set_title("contribution", fontsize=9)
    scale = axis.inset_axes((1.03, 0, 0.05, 1))
    scale.imshow(np.linspace(largest, -largest, 256)[:, None], aspect="auto", **colors)
    label = f"{largest:.2g}"
    scale.set_xticks([])
    scale.set_yticks([0, 127.5, 255], [label, "0", f"−{label}"], fontsize=7)
    scale.yaxis.tick_right()


def _gray(image: Tensor) -> np.ndarray:
    """Luminance in [0.3, 1], (H, W): colors stand out on it, and black stays visible behind them."""
    weights = torch.tensor([0.299, 0.587, 0.114])
    luminance = torch.einsum("chw,c->hw", image.float() / 255, weights)
    return (0.3 + 0.7 * luminance).numpy()


def _enlarged(values: Tensor, height: int, width: int) -> np.ndarray:
    """Values (L,) of the positions as (height, width), interpolated smoothly."""
    grid = values.reshape(1, 1, *grid_shape(len(values), height / width))  # (1, 1, rows, columns)
    enlarged: np.ndarray = F.interpolate(grid, size=(height, width), mode="bilinear")[0, 0].numpy()
    return enlarged
