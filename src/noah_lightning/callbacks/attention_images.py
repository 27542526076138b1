"""Pictures of what a NOAH head attends to, logged to W&B during training and drawn by ``noah demo``."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import lightning.pytorch as pl
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from noah_lightning.data.datamodule import ImageDataModule
from noah_lightning.distributed.environment import rank
from noah_lightning.models.classifier import Classifier
from noah_lightning.models.feature_extractor import grid_shape
from noah_lightning.task import ClassificationTask

if TYPE_CHECKING:  # matplotlib takes half a second to import, and most runs draw nothing
    from matplotlib.axes import Axes

LONGEST_TITLE = 18  # characters above a small image
COLORS = ("#9aa5b1", "#d1495b", "#30638e", "#edae49")  # one per head, in the order given


class AttentionPicture(Callback):
    """Logs ``val/attention`` to W&B: a few validation images under the attention of their most probable class.

    Only rank 0 draws, without any collective. The modules' modes and the random number generators are restored, so
    a run with pictures trains exactly as one without.

    Args:
        logger: W&B logger.
        data: the same images, evenly spaced over its validation set, are drawn every time.
        every: epochs between two pictures; the last epoch always has one.
        count: number of images.
    """

    def __init__(self, logger: WandbLogger, data: ImageDataModule, every: int, count: int = 6) -> None:
        self.logger, self.data, self.every, self.count = logger, data, every, count

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, ClassificationTask)
        epoch = trainer.current_epoch + 1
        if rank() > 0 or (epoch % self.every and epoch != trainer.max_epochs):
            return
        model, precision = pl_module.model, trainer.precision_plugin
        assert isinstance(model, Classifier)
        with isolate_rng(), evaluating(model), torch.no_grad():
            images, labels = self._images()
            normalized = precision.convert_input(self.data.on_device.normalize(images.to(pl_module.device)))
            with precision.forward_context():
                guesses, attention = attention_of_guess(model, normalized)
            picture = draw_attention(images, labels, guesses.tolist(), self.data.class_names, attention.float().cpu())
        step = trainer.global_step - 1  # that of the epoch's metrics
        self.logger.log_image("val/attention", [picture], step=step, caption=[f"epoch {epoch}"])

    def _images(self) -> tuple[Tensor, list[int]]:
        """uint8 (count, 3, H, W), evenly spaced over the validation set, and their labels."""
        dataset = self.data.val_dataset
        assert dataset is not None
        count = min(self.count, len(dataset))
        samples = [dataset[i * len(dataset) // count] for i in range(count)]
        return torch.stack([image for image, _ in samples]), [int(label) for _, label in samples]


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
