"""Accuracy counts and predictions of a complete pass over a data set."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed import get_world_size
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class Accuracy(NamedTuple):
    """Counts over a complete pass: images, correct at top-1 and top-5; the mean loss, and the number of classes."""

    images: int
    correct: int
    correct_top5: int
    loss: float
    classes: int | None = None

    @property
    def top1(self) -> float:
        """Percent."""
        return 100 * self.correct / max(self.images, 1)  # 0 images if each step of an epoch was skipped

    @property
    def top5(self) -> float:
        """Percent; with fewer than five classes it is 100."""
        return 100 * self.correct_top5 / self.images

    def __str__(self) -> str:
        top5 = "" if self.classes and self.classes <= 5 else f"  top-5 {self.top5:.3f} %"
        return f"top-1 {self.top1:.3f} % ({self.correct:,} of {self.images:,}){top5}  loss {self.loss:.4f}"


class AccuracyCounter(Metric):
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

    def counts(self) -> list[float]:
        """The four sums of this process so far; waits for the device."""
        return [float(getattr(self, name)) for name in self._defaults]

    def set_counts(self, counts: Sequence[float]) -> None:
        """Restore what :meth:`counts` returned."""
        for name, value in zip(self._defaults, counts, strict=True):
            getattr(self, name).fill_(value)

    def compute(self) -> Accuracy:
        """The counts so far over all processes (a collective); waits for the device."""
        images, correct, correct_top5, loss_sum = self.counts()
        return Accuracy(int(images), int(correct), int(correct_top5), loss_sum / max(images, 1), self.classes)


class Predictions(Metric):
    """Labels and predicted classes of a validation in which rank r of W sees the images r, r + W, r + 2W, ..."""

    labels: list[Tensor]
    guesses: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("labels", [], dist_reduce_fx="cat")
        self.add_state("guesses", [], dist_reduce_fx="cat")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: logits (B, K), labels (B,), below 0 for padding."""
        self.labels.append(labels)
        self.guesses.append(logits.detach().argmax(dim=1))

    def compute(self) -> tuple[Tensor, Tensor]:
        """Labels and predicted classes (images,) over all processes (a collective), on the CPU."""
        processes = get_world_size() if self._is_synced else 1
        labels, guesses = (
            dim_zero_cat(parts).cpu().unflatten(0, (processes, -1)).T.flatten()  # (W m,) -> (W, m) -> (m W,)
            for parts in (self.labels, self.guesses)
        )
        images = labels >= 0
        return labels[images], guesses[images]
