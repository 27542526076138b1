"""Paired comparison of groups of runs with their baselines: differences, tests, gains per class."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from noah_lightning.analysis.groups import BASELINE, Group, group_runs, identity
from noah_lightning.analysis.ranking import Ranking, rank_heads
from noah_lightning.errors import ConfigError
from noah_lightning.run_dir import Predictions, RunDir, find_runs

RESAMPLES, LEVEL = 2000, 95  # LEVEL in percent


@dataclass(frozen=True)
class Paired:
    """Test of a group against its baseline, image by image; the interval is in points of top-1."""

    better: int  # pairs (image, seed) that only the group classifies correctly
    worse: int  # that only the baseline classifies correctly
    images: int  # per seed
    seeds: int
    low: float
    high: float
    p: float  # McNemar, exact, two-sided
    one_sign: bool  # no two seeds have differences of opposite sign
    corrected: float | None = None  # p after Holm's correction; None for the only test of a comparison

    @property
    def significant(self) -> bool:
        """The interval excludes 0, and p, corrected if there are several tests, is below 5 %."""
        p = self.p if self.corrected is None else self.corrected
        return not self.low <= 0 <= self.high and p < 1 - LEVEL / 100


def compare_paired(group: Sequence[np.ndarray], baseline: Sequence[np.ndarray], same_images: bool) -> Paired:
    """Test a group against its baseline by which images are correct, bool (images,) per seed.

    Args:
        group: one array per seed.
        baseline: arrays of the same seeds and images.
        same_images: whether all seeds have the same validation images, so that an image is resampled together with
            all its seeds. Otherwise the images of each seed are resampled separately.
    """
    differences = [g.astype(int) - b.astype(int) for g, b in zip(group, baseline, strict=True)]  # -1, 0, 1
    better, worse = (sum(int((d == sign).sum()) for d in differences) for sign in (1, -1))
    low, high = bootstrap([np.mean(differences, axis=0)] if same_images else differences)
    return Paired(
        better=better,
        worse=worse,
        images=len(differences[0]),
        seeds=len(differences),
        low=100 * low,
        high=100 * high,
        p=mcnemar(better, worse),
        one_sign=len({int(np.sign(d.sum())) for d in differences}) == 1,
    )


def mcnemar(better: int, worse: int) -> float:
    """McNemar's exact test: the two-sided p value of a binomial test with probability 1/2."""
    from scipy.special import bdtr  # scipy.stats.binomtest, without half a second of imports

    return min(1.0, 2 * float(bdtr(min(better, worse), better + worse, 0.5)))


def holm(p_values: Sequence[float]) -> list[float]:
    """p values after Holm's correction (1979) for their number.

    The smallest of m is multiplied by m, the next by m - 1, and so on; none is smaller than the one before it.
    """
    p = np.asarray(p_values, float)
    order = np.argsort(p)
    corrected = np.empty_like(p)
    corrected[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    return np.minimum(corrected, 1).tolist()


def bootstrap(sets: Sequence[np.ndarray]) -> tuple[float, float]:
    """Bootstrap percentile interval of the mean over ``sets`` of the mean of each set.

    There are few distinct values, so their counts are drawn: the same distribution, but faster.
    """
    random = np.random.default_rng(0)
    means = np.zeros(RESAMPLES)
    for values in sets:
        distinct, counts = np.unique(values, return_counts=True)
        drawn = random.multinomial(len(values), counts / len(values), size=RESAMPLES)
        means += drawn @ distinct / (len(values) * len(sets))
    margin = (100 - LEVEL) / 2
    low, high = np.percentile(means, [margin, 100 - margin])
    return float(low), float(high)


@dataclass(frozen=True)
class ClassGain:
    """Results of one class; all counts are sums over the seeds."""

    name: str
    images: int
    correct: int
    baseline: int  # correct with the baseline

    @property
    def points(self) -> float:
        """Difference in accuracy, in percentage points."""
        return 100 * (self.correct - self.baseline) / self.images


def class_gains(group: Sequence[Predictions], baseline: Sequence[Predictions]) -> list[ClassGain]:
    """Gains of all classes with images, the largest first; predictions are paired by seed."""
    names = max((predictions.class_names for predictions in group), key=len)
    labels = np.concatenate([predictions.labels for predictions in group])
    right, before = (np.concatenate([predictions.right for predictions in side]) for side in (group, baseline))
    counts = [np.bincount(labels[chosen], minlength=len(names)) for chosen in (slice(None), right, before)]
    gains = [ClassGain(name, *map(int, row)) for name, *row in zip(names, *counts, strict=True) if row[0]]
    return sorted(gains, key=lambda gain: -gain.points)


@dataclass(frozen=True)
class Entry:
    """A group compared with its baseline; None or empty if there is none."""

    group: Group
    baseline: Group | None = None
    seeds: tuple[int, ...] = ()  # in common, used for difference and test
    difference: float | None = None  # points of top-1 or mAP
    paired: Paired | None = None
    untested: str = ""  # reason why there is no test
    gains: Sequence[ClassGain] = ()


def measure(group: Group, groups: Sequence[Group]) -> Entry:
    """Compare ``group`` with its baseline among ``groups``, image by image if the predictions allow it."""
    baseline = find_baseline(group, groups)
    if baseline is None:
        return Entry(group)
    seeds = tuple(seed for seed in group.runs if seed in baseline.runs)
    if not seeds:
        return Entry(group, baseline, seeds, group.top1 - baseline.top1, untested="no seed in common")
    difference = statistics.fmean(group.outcomes[seed].score - baseline.outcomes[seed].score for seed in seeds)
    try:
        ours, theirs = ([side.runs[seed].predictions() for seed in seeds] for side in (group, baseline))
        if not all(np.array_equal(one.labels, other.labels) for one, other in zip(ours, theirs, strict=True)):
            raise ConfigError("its validation images differ from those of the baseline")
    except ConfigError as reason:
        return Entry(group, baseline, seeds, difference, untested=str(reason))
    draws = {
        str(side.runs[seed].settings.get("data.seed")) for side in (group, baseline) for seed in seeds
    }  # of digits
    same_images = len(draws) == 1 and all(np.array_equal(ours[0].labels, other.labels) for other in ours)
    paired = compare_paired([one.right for one in ours], [other.right for other in theirs], same_images)
    return Entry(group, baseline, seeds, difference, paired, gains=class_gains(ours, theirs))


def find_baseline(group: Group, groups: Sequence[Group]) -> Group | None:
    """The group with head=gap that differs only in the head, or else has the same model name, data and recipe.

    Of several, the one with the most seeds in common, then the one with the highest accuracy.
    """
    if group.head == BASELINE:
        return None
    for parts in ({"without": ("head.",)}, {"only": ("model.name", "data.", "recipe.")}):
        wanted = identity(group.settings, **parts)
        fitting = [g for g in groups if g.head == BASELINE and identity(g.settings, **parts) == wanted]
        if fitting:
            return max(fitting, key=lambda g: (len(g.runs.keys() & group.runs.keys()), g.top1))
    return None


@dataclass(frozen=True)
class Comparison:
    """Groups of finished runs, and the runs that have not finished."""

    entries: tuple[Entry, ...]
    unfinished: tuple[RunDir, ...]
    ranking: Ranking | None = None
    unranked: str = ""  # reason why more than two groups have no ranks

    @property
    def tests(self) -> int:
        """Number of groups that are tested against their baseline."""
        return sum(entry.paired is not None for entry in self.entries)


def compare(folders: Sequence[Path]) -> Comparison:
    """Compare each group of runs with its baseline; arguments and errors as for :func:`find_runs`."""
    if not folders:
        raise ConfigError("there is nothing to compare; give at least one run directory")
    runs = find_runs(folders)
    groups = group_runs(runs)
    entries = _corrected([measure(group, groups) for group in groups])
    unfinished = tuple(run for run in runs if run.outcome is None)
    if len(groups) <= 2:
        return Comparison(entries, unfinished)
    try:
        return Comparison(entries, unfinished, rank_heads(groups))
    except ConfigError as reason:
        return Comparison(entries, unfinished, unranked=str(reason))


def _corrected(entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """The entries with Holm's correction over all tests, if there are several."""
    tested = [entry.paired for entry in entries if entry.paired]
    if len(tested) < 2:
        return tuple(entries)
    values = iter(holm([paired.p for paired in tested]))
    return tuple(
        replace(entry, paired=replace(entry.paired, corrected=next(values))) if entry.paired else entry
        for entry in entries
    )
