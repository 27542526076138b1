"""Mean average precision of multi-label predictions, and the mean loss of their training."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_average_precision
from torchmetrics.utilities import dim_zero_cat

from noah_lightning.task.losses import is_image
from noah_lightning.task.metrics import Counter


def mean_average_precision(logits: Tensor, labels: Tensor) -> float:
    """Percent, macro-averaged over the classes with positives, of logits and labels (images, K).

    Without positives the average precision of a class is undefined; as in COCO's evaluation, it is left out. It is 0
    if no class has positives.
    """
    classes = labels.any(dim=0).nonzero().flatten().tolist()
    found = [binary_average_precision(_ranks(logits[:, k]), labels[:, k].long(), thresholds=None) for k in classes]
    return 100 * float(torch.stack(found).double().mean()) if found else 0.0


def _ranks(values: Tensor) -> Tensor:
    """Numbers from 0 to 1 in the same order, (images,), and equal where these are.

    Of logits outside this range torchmetrics takes the sigmoid, in which high ones are equal.
    """
    return values.unique(return_inverse=True)[1].double() / len(values)


class MeanLoss(NamedTuple):
    """Number of images, and their mean loss."""

    images: int
    loss: float

    @property
    def in_training(self) -> str:
        """For the line of an epoch."""
        return f"loss {self.loss:.4f}"


class Precision(NamedTuple):
    """Mean average precision (percent) and mean loss over a complete pass."""

    images: int
    map: float
    loss: float

    @property
    def rating(self) -> float:
        """The best epoch has the highest."""
        return self.map

    @property
    def brief(self) -> str:
        """The rating in words."""
        return f"mAP {self.map:.3f} %"

    def metrics(self) -> dict[str, float]:
        """For the loggers."""
        return {"loss": self.loss, "map": self.map}

    def results(self) -> dict[str, Any]:
        """For results.json."""
        return {"map": self.map}

    def __str__(self) -> str:
        return f"{self.brief} ({self.images:,} images)  loss {self.loss:.4f}"


class LossCounter(Counter):
    """Sum of the losses on the device; summed over processes in :meth:`compute`."""

    images: Tensor
    loss_sum: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("images", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("loss_sum", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor, loss_sum: Tensor) -> None:
        """Count a batch: labels (B, K), below 0 for padding, and the sum of the images' losses ()."""
        self.images += is_image(labels).sum()
        self.loss_sum += loss_sum.detach().float()

    def compute(self) -> MeanLoss:
        images = int(self.images)
        return MeanLoss(images, float(self.loss_sum) / max(images, 1))


class PrecisionCounter(LossCounter):
    """Keeps the logits of a pass on the device; gathered from all processes in :meth:`compute`."""

    logits: list[Tensor]
    labels: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("logits", [], dist_reduce_fx="cat")
        self.add_state("labels", [], dist_reduce_fx="cat")

    def update(self, logits: Tensor, labels: Tensor, loss_sum: Tensor) -> None:
        """Add a batch: logits and labels (B, K), below 0 for padding, and the sum of the images' losses ()."""
        super().update(logits, labels, loss_sum)
        self.logits.append(logits.detach())
        self.labels.append(labels)

    def compute(self) -> Precision:  # type: ignore[override]
        logits, labels = (dim_zero_cat(parts).cpu() for parts in (self.logits, self.labels))
        real = is_image(labels)
        images, loss = super().compute()
        return Precision(images, mean_average_precision(logits[real], labels[real]), loss)
