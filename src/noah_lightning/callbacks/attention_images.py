"""Pictures of what a head attends to, logged during training and drawn by ``noah demo``."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import lightning.pytorch as pl
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from noah_lightning.data.datamodule import ImageDataModule
from noah_lightning.data.loader import Label
from noah_lightning.distributed.environment import rank
from noah_lightning.loggers.factory import log_picture
from noah_lightning.models.classifier import Classifier
from noah_lightning.models.feature_extractor import grid_shape
from noah_lightning.task import ClassificationTask

if TYPE_CHECKING:  # matplotlib takes half a second to import, and most runs draw nothing
    from matplotlib.axes import Axes

Summary = TypeVar("Summary")

AT_ONCE = 8  # images explained at a time, as attention (B, N, K, L) is large for many classes
LONGEST_TITLE = 18  # characters above a small image
COLORS = ("#9aa5b1", "#d1495b", "#30638e", "#edae49")  # one per head, in the order given


class AttentionCallback(Callback):
    """Base class of callbacks that explain the same validation images every time, evenly spaced over the set.

    Only rank 0 explains them, without any collective. The modules' modes and the random number generators are
    restored, so a run trains exactly as one without the callback.

    Args:
        data: whose validation images are explained.
        count: number of images; they stay in memory, as bytes.
    """

    def __init__(self, data: ImageDataModule, count: int) -> None:
        self.data, self.count = data, count
        self._samples: list[tuple[Tensor, Label]] = []

    def samples(self) -> tuple[Tensor, list[Label]]:
        """uint8 (count, 3, H, W) and their labels; fewer if the validation set has fewer."""
        dataset = self.data.val_dataset
        assert dataset is not None
        if not self._samples:
            count = min(self.count, len(dataset))
            self._samples = [dataset[i * len(dataset) // count] for i in range(count)]
        return torch.stack([image for image, _ in self._samples]), [label for _, label in self._samples]

    def explain(
        self, trainer: pl.Trainer, task: pl.LightningModule, summarize: Callable[[Classifier, Tensor], Summary]
    ) -> list[Summary]:
        """``summarize`` of the model and the normalized images, for :data:`AT_ONCE` images at a time."""
        assert isinstance(task, ClassificationTask)
        model, precision = task.model, trainer.precision_plugin
        assert isinstance(model, Classifier)
        summaries = []
        with isolate_rng(), evaluating(model), torch.no_grad():
            for images in self.samples()[0].split(AT_ONCE):
                normalized = precision.convert_input(self.data.on_device.normalize(images.to(task.device)))
                with precision.forward_context():
                    summaries.append(summarize(model, normalized))
        return summaries


class AttentionPicture(AttentionCallback):
    """Logs ``val/attention``: a few single-label validation images under the attention of their most probable class.

    Args:
        data, count: as of the base class.
        every: epochs between two pictures; the last epoch always has one.
    """

    def __init__(self, data: ImageDataModule, count: int, every: int) -> None:
        super().__init__(data, count)
        self.every = every

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        if rank() > 0 or (epoch % self.every and epoch != trainer.max_epochs):
            return
        guesses, attention = map(torch.cat, zip(*self.explain(trainer, pl_module, attention_of_guess), strict=True))
        images, labels = self.samples()
        classes, names = [int(label) for label in labels], self.data.class_names
        picture = draw_attention(images, classes, guesses.tolist(), names, attention.float().cpu())
        step = trainer.global_step - 1  # that of the epoch's metrics
        for logger in trainer.loggers:
            log_picture(logger, "val/attention", picture, step, caption=f"epoch {epoch}")


def attention_of_guess(model: Classifier, images: Tensor) -> tuple[Tensor, Tensor]:
    """The most probable class (B,) of normalized images, and its attention (B, L), averaged over the heads."""
    explanation = model.explain(images)
    guesses = explanation.logits.argmax(dim=1)
    attention = explanation.attention[torch.arange(len(images)), :, guesses]  # (B, N, K, L) -> (B, N, L)
    return guesses, attention.mean(dim=1)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode within this context; afterwards each module's mode is restored."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


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
    size = picture.shape[:2]
    grid = attention.reshape(1, 1, *grid_shape(len(attention), size[0] / size[1]))  # (1, 1, rows, columns)
    covered.imshow(F.interpolate(grid, size=size, mode="bilinear")[0, 0].numpy(), cmap="inferno", alpha=0.6)
