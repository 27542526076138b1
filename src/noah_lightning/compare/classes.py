"""Which classes a head helps, and which it hurts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from noah_lightning.compare.read import Predictions

SHOWN = 10


@dataclass(frozen=True)
class ClassGain:
    """One class; all counts are summed over the seeds."""

    name: str
    images: int
    correct: int
    baseline: int  # right by the baseline

    @property
    def points(self) -> float:
        """Difference of the class's accuracies, in points."""
        return 100 * (self.correct - self.baseline) / self.images


def class_gains(group: Sequence[Predictions], baseline: Sequence[Predictions]) -> list[ClassGain]:
    """Every class that has images, the most helped first; the predictions are paired by seed."""
    names = group[0].class_names
    labels = np.concatenate([said.labels for said in group])
    size = max(len(names), int(labels.max()) + 1)
    right, before = (np.concatenate([said.right for said in side]) for side in (group, baseline))
    counts = (np.bincount(labels[chosen], minlength=size) for chosen in (slice(None), right, before))
    gains = [
        ClassGain(names[k] if k < len(names) else str(k), int(n), int(correct), int(base))
        for k, (n, correct, base) in enumerate(zip(*counts, strict=True))
        if n
    ]
    return sorted(gains, key=lambda gain: -gain.points)


def most_helped(gains: Sequence[ClassGain]) -> list[ClassGain]:
    return [gain for gain in gains if gain.points > 0][:SHOWN]


def most_hurt(gains: Sequence[ClassGain]) -> list[ClassGain]:
    return [gain for gain in reversed(gains) if gain.points < 0][:SHOWN]
