"""Accuracy counts and predictions of a complete pass over a data set."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed import get_world_size
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from noah_lightning.task.losses import is_image


class Accuracy(NamedTuple):
    """Counts over a complete pass: images, correct at top-1 and top-5; the mean loss, and the number of classes."""

    images: int
    correct: int
    correct_top5: int
    loss: float
    classes: int | None = None

    @property
    def rating(self) -> float:
        """The best epoch has the highest."""
        return self.correct

    @property
    def top1(self) -> float:
        """Percent."""
        return 100 * self.correct / max(self.images, 1)  # 0 images if each step of an epoch was skipped

    @property
    def top5(self) -> float:
        """Percent; with fewer than five classes it is 100."""
        return 100 * self.correct_top5 / self.images

    @property
    def brief(self) -> str:
        """The rating in words."""
        return f"top-1 {self.top1:.3f} %"

    @property
    def in_training(self) -> str:
        """For the line of an epoch."""
        return f"loss {self.loss:.4f} top-1 {self.top1:.2f} %"

    def metrics(self) -> dict[str, float]:
        """For the loggers."""
        return {"loss": self.loss, "top1": self.top1, "top5": self.top5}

    def results(self) -> dict[str, Any]:
        """For results.json."""
        return {"correct": self.correct, "correct_top5": self.correct_top5}

    def __str__(self) -> str:
        top5 = "" if self.classes and self.classes <= 5 else f"  top-5 {self.top5:.3f} %"
        return f"{self.brief} ({self.correct:,} of {self.images:,}){top5}  loss {self.loss:.4f}"


class Counter(Metric):
    """Base class of sums on the device."""

    def counts(self) -> list[float]:
        """The sums of this process so far; waits for the device."""
        return [float(getattr(self, name)) for name in self._defaults]

    def set_counts(self, counts: Sequence[float]) -> None:
        """Restore what :meth:`counts` returned."""
        for name, value in zip(self._defaults, counts, strict=True):
            getattr(self, name).fill_(value)


class AccuracyCounter(Counter):
    """Integer counts on the device, so that a step never waits for it; summed over processes in :meth:`compute`."""

    images: Tensor
    correct: Tensor
    correct_top5: Tensor
    loss_sum: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.classes: int | None = None  # known from the first batch on
        for name in ("images", "correct", "correct_top5"):
            self.add_state(name, torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("loss_sum", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor, loss_sum: Tensor) -> None:
        """Count a batch: logits (B, K), labels (B,), below 0 for padding, and the sum of the images' losses ()."""
        self.classes = logits.shape[1]
        guesses = logits.detach().topk(min(5, self.classes)).indices  # (B, 5), best first
        hits = guesses == labels.unsqueeze(1)  # none for padding
        self.images += (labels >= 0).sum()
        self.correct += hits[:, 0].sum()
        self.correct_top5 += hits.sum()
        self.loss_sum += loss_sum.detach().float()

    def compute(self) -> Accuracy:
        """The counts so far over all processes (a collective); waits for the device."""
        images, correct, correct_top5, loss_sum = self.counts()
        return Accuracy(int(images), int(correct), int(correct_top5), loss_sum / max(images, 1), self.classes)


def most_probable(logits: Tensor) -> Tensor:
    """Classes (B,) of logits (B, K)."""
    return logits.argmax(dim=1)


class Predictions(Metric):
    """Labels and predictions of a validation in which rank r of W sees the images r, r + W, r + 2W, ...

    Args:
        predict: logits (B, K) to what is kept of them, (B, ...).
    """

    labels: list[Tensor]
    predicted: list[Tensor]

    def __init__(self, predict: Callable[[Tensor], Tensor] = most_probable) -> None:
        super().__init__()
        self.predict = predict
        self.add_state("labels", [], dist_reduce_fx="cat")
        self.add_state("predicted", [], dist_reduce_fx="cat")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: logits (B, K), labels (B,) or (B, K), below 0 for padding."""
        self.labels.append(labels)
        self.predicted.append(self.predict(logits.detach()))

    def compute(self) -> tuple[Tensor, Tensor]:
        """Labels and predictions (images, ...) over all processes (a collective), on the CPU."""
        processes = get_world_size() if self._is_synced else 1
        labels, predicted = (
            # (W m, ...) -> (W, m, ...) -> (m W, ...)
            dim_zero_cat(parts).cpu().unflatten(0, (processes, -1)).transpose(0, 1).flatten(0, 1)
            for parts in (self.labels, self.predicted)
        )
        images = is_image(labels)
        return labels[images], predicted[images]
