"""Pictures of what a head attends to."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")  # files only; no display is needed

import matplotlib.pyplot as plt
import torch.nn.functional as F
from torch import Tensor

from noah_lightning.models.feature_extractor import grid_shape

LONGEST_TITLE = 18  # letters above a small image
COLORS = ("#9aa5b1", "#d1495b", "#30638e", "#edae49")  # one per head, in the order given


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
        images: uint8 (B, 3, H, W).
        labels: the true classes.
        class_names: in label order.
        probabilities: of each head, (B, K).
        attention: (B, L), over the row-major positions of the feature map.
    """
    shown = [int(k) for k in _most_probable(probabilities, limit=10)]
    figure, axes = plt.subplots(
        len(images),
        3,
        figsize=(9, 2.1 * len(images)),
        width_ratios=(1, 2, 1),
        layout="constrained",
        squeeze=False,
    )
    for b, (left, middle, right) in enumerate(axes):
        picture = images[b].movedim(0, 2).numpy()  # (3, H, W) -> (H, W, 3)
        left.imshow(picture)
        left.set_ylabel(f"class {class_names[labels[b]]}", fontsize=11)
        _draw_attention(right, picture, attention[b])
        for axis in (left, right):
            axis.set(xticks=[], yticks=[])
        _draw_bars(middle, {head: p[b, shown] for head, p in probabilities.items()})
        middle.set_xticks(range(len(shown)), [class_names[k] for k in shown])
        for tick, k in zip(middle.get_xticklabels(), shown, strict=True):
            tick.set_fontweight("bold" if k == labels[b] else "normal")
    for axis, title in zip(
        axes[0], ("image", "class probabilities", "attention of NOAH\nto its best class"), strict=True
    ):
        axis.set_title(title)
    figure.legend(*axes[0, 1].get_legend_handles_labels(), loc="outside lower center", ncols=len(probabilities))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_attention(
    images: Tensor, labels: Sequence[int], guesses: Sequence[int], class_names: Sequence[str], attention: Tensor
) -> np.ndarray:
    """The images side by side, and below each the attention over it: RGB, uint8 (height, width, 3).

    Args:
        images: uint8 (B, 3, H, W).
        labels: the true classes.
        guesses: the most probable classes, whose attention it is.
        class_names: in label order.
        attention: (B, L), over the row-major positions of the feature map.
    """
    figure, axes = plt.subplots(2, len(images), figsize=(2 * len(images), 4.6), layout="constrained", squeeze=False)
    for b, (above, below) in enumerate(axes.T):
        picture = images[b].movedim(0, 2).numpy()  # (3, H, W) -> (H, W, 3)
        above.imshow(picture)
        above.set_title(class_names[labels[b]][:LONGEST_TITLE])
        _draw_attention(below, picture, attention[b])
        right = guesses[b] == labels[b]
        below.set_title(class_names[guesses[b]][:LONGEST_TITLE], color="black" if right else COLORS[1])
        for axis in (above, below):
            axis.set(xticks=[], yticks=[])
    axes[0, 0].set_ylabel("image")
    axes[1, 0].set_ylabel("attention of the guess")
    figure.canvas.draw()
    drawn = np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()  # type: ignore[attr-defined]
    plt.close(figure)
    return drawn


def _draw_attention(axis: plt.Axes, picture: np.ndarray, attention: Tensor) -> None:
    """Attention (L,) over a picture (H, W, 3)."""
    axis.imshow(picture)
    axis.imshow(_over_image(attention, picture.shape[:2]), cmap="inferno", alpha=0.6)


def _most_probable(probabilities: Mapping[str, Tensor], limit: int) -> list[int]:
    """At most ``limit`` classes, those that any head finds most probable, in label order."""
    highest = sum(p.amax(dim=0) for p in probabilities.values())
    assert isinstance(highest, Tensor)
    return sorted(highest.topk(min(limit, len(highest))).indices.tolist())


def _over_image(attention: Tensor, size: Sequence[int]) -> np.ndarray:
    """(L,) → (H, W), smoothly enlarged."""
    rows, columns = grid_shape(len(attention), size[0] / size[1])
    grid = attention.reshape(1, 1, rows, columns)
    return F.interpolate(grid, size=tuple(size), mode="bilinear", align_corners=False)[0, 0].numpy()


def _draw_bars(axis: plt.Axes, probabilities: Mapping[str, Tensor]) -> None:
    width = 0.8 / len(probabilities)
    for i, (head, values) in enumerate(probabilities.items()):
        places = [k + (i - (len(probabilities) - 1) / 2) * width for k in range(len(values))]
        axis.bar(places, values.numpy(), width, label=head, color=COLORS[i % len(COLORS)])
    axis.set(ylim=(0, 1), yticks=(0, 0.5, 1))
    axis.spines[["top", "right"]].set_visible(False)
