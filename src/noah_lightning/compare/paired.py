"""Tests for two classifiers that have looked at the same images."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES, LEVEL = 2000, 95  # LEVEL in percent


@dataclass(frozen=True)
class Paired:
    """A group against its baseline, image by image; the interval is in points of top-1."""

    better: int  # pairs (image, seed) that only the group had right
    worse: int  # that only the baseline had right
    images: int  # of one seed
    seeds: int
    low: float
    high: float
    p: float  # McNemar, exact, two-sided
    one_sign: bool  # no seed says the opposite of another

    @property
    def beyond_chance(self) -> bool:
        """Both say so: the interval leaves out 0, and p is below 5 %."""
        return not self.low <= 0 <= self.high and self.p < 1 - LEVEL / 100


def compare_paired(group: Sequence[np.ndarray], baseline: Sequence[np.ndarray], same_images: bool) -> Paired:
    """From what was right, bool (images,) per seed, in the same order of seeds and images.

    ``same_images``: every seed was validated with the same images, so that an image is resampled with what all the
    seeds made of it; otherwise each seed's images are resampled by themselves.
    """
    differences = [g.astype(int) - b.astype(int) for g, b in zip(group, baseline, strict=True)]  # -1, 0, 1
    better = sum(int((d > 0).sum()) for d in differences)
    worse = sum(int((d < 0).sum()) for d in differences)
    low, high = bootstrap([np.mean(differences, axis=0)] if same_images else differences)
    signs = {int(np.sign(d.sum())) for d in differences}
    return Paired(
        better,
        worse,
        len(differences[0]),
        len(differences),
        100 * low,
        100 * high,
        mcnemar(better, worse),
        len(signs) == 1,
    )


def mcnemar(better: int, worse: int) -> float:
    """Exact two-sided probability of a split at least as uneven, if either way were equally likely."""
    n, k = better + worse, min(better, worse)
    log_terms = [math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in range(k + 1)]
    tail = math.fsum(math.exp(term - n * math.log(2)) for term in log_terms)
    return min(1.0, 2 * tail)


def bootstrap(sets: Sequence[np.ndarray], resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, float]:
    """Percentile interval of the mean over sets of their means, each set's values being drawn with replacement.

    There are few different values, so their counts are drawn instead of the values: the same thing, only faster.
    """
    random = np.random.default_rng(seed)
    means = np.zeros(resamples)
    for values in sets:
        different, counts = np.unique(values, return_counts=True)
        drawn = random.multinomial(len(values), counts / len(values), size=resamples)
        means += drawn @ different / (len(values) * len(sets))
    margin = (100 - LEVEL) / 2
    low, high = np.percentile(means, [margin, 100 - margin])
    return float(low), float(high)
