"""A group of runs against its baseline: means, differences, paired tests, classes."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from noah_lightning.analysis.groups import Group, group_runs, identity
from noah_lightning.errors import ConfigError
from noah_lightning.run_dir import Predictions, Results, RunDir, find_runs

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


BASELINE = "gap"  # the head that others are measured against


@dataclass(frozen=True)
class Entry:
    """One group; what concerns the baseline is None or empty where there is none."""

    group: Group
    baseline: Group | None = None
    seeds: tuple[int, ...] = ()  # in both; of these are the difference and the test
    difference: float | None = None  # points of top-1
    paired: Paired | None = None
    untested: str = ""  # why there is no test
    gains: tuple[ClassGain, ...] = ()

    @property
    def outcomes(self) -> list[Results]:
        return [run.outcome for run in self.group.runs.values() if run.outcome]

    @property
    def top1(self) -> float:
        """Percent, the mean over the seeds."""
        return statistics.fmean(outcome.top1 for outcome in self.outcomes)

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation over the seeds, in points; None for one seed."""
        return statistics.stdev(o.top1 for o in self.outcomes) if len(self.outcomes) > 1 else None

    @property
    def peak_memory(self) -> int | None:
        """Bytes, the largest of the seeds."""
        return max((o.peak_memory for o in self.outcomes if o.peak_memory is not None), default=None)

    def mean(self, fact: str) -> float:
        """Of one of :class:`Results`'s facts, over the seeds."""
        return statistics.fmean(getattr(outcome, fact) for outcome in self.outcomes)


def measure(group: Group, groups: Sequence[Group]) -> Entry:
    """``group`` against its baseline among ``groups``, image by image where the predictions allow it."""
    baseline = find_baseline(group, groups)
    if baseline is None:
        return Entry(group)
    seeds = tuple(seed for seed in group.runs if seed in baseline.runs)
    if not seeds:
        difference = Entry(group).top1 - Entry(baseline).top1
        return Entry(group, baseline, (), difference, untested="no seed in common")
    pairs = [(group.runs[seed], baseline.runs[seed]) for seed in seeds]
    difference = statistics.fmean(_top1(ours) - _top1(theirs) for ours, theirs in pairs)
    try:
        paired, gains = _test(pairs)
    except ConfigError as reason:
        return Entry(group, baseline, seeds, difference, untested=str(reason))
    return Entry(group, baseline, seeds, difference, paired, gains=tuple(gains))


def find_baseline(group: Group, groups: Sequence[Group]) -> Group | None:
    """The group with head=gap that differs in the head alone, else one of the same model's name, data and recipe.

    Of several it is the one with most seeds in common, and then the one with the highest accuracy.
    """
    if group.head == BASELINE:
        return None

    def only_the_head(key: str) -> bool:
        return not key.startswith("head.")

    def at_least(key: str) -> bool:
        return key == "model.name" or key.startswith(("data.", "recipe."))

    for keep in (only_the_head, at_least):
        wanted = identity(group.settings, keep)
        fitting = [g for g in groups if g.head == BASELINE and identity(g.settings, keep) == wanted]
        if fitting:
            return max(fitting, key=lambda g: (len(g.runs.keys() & group.runs.keys()), Entry(g).top1))
    return None


def _top1(run: RunDir) -> float:
    assert run.outcome is not None
    return run.outcome.top1


def _test(pairs: Sequence[tuple[RunDir, RunDir]]) -> tuple[Paired, list[ClassGain]]:
    """Raises ConfigError with the reason where the predictions cannot be paired."""
    ours = [run.predictions() for run, _ in pairs]
    theirs = [run.predictions() for _, run in pairs]
    for one, other in zip(ours, theirs, strict=True):
        if not np.array_equal(one.labels, other.labels):
            raise ConfigError("other validation images than the baseline's")
    runs = [run for pair in pairs for run in pair]
    paired = compare_paired([o.right for o in ours], [t.right for t in theirs], _same_images(runs, ours))
    return paired, class_gains(ours, theirs)


def _same_images(runs: Sequence[RunDir], said: Sequence[Predictions]) -> bool:
    """Whether all seeds were validated with one set of images: data.seed, where there is one, draws another."""
    one_draw = len({run.settings.get("data.seed") for run in runs}) == 1
    return one_draw and all(np.array_equal(said[0].labels, other.labels) for other in said)


@dataclass(frozen=True)
class Comparison:
    """Groups of finished runs, and the runs that have not finished."""

    entries: tuple[Entry, ...]
    unfinished: tuple[RunDir, ...]


def compare(folders: Sequence[Path]) -> Comparison:
    """Read every run in ``folders`` and measure each group of seeds against its baseline.

    Args:
        folders: run directories, or folders that hold some at most three levels down.

    Raises:
        ConfigError: a folder that is missing or holds no run.
    """
    if not folders:
        raise ConfigError("there is nothing to compare; name at least one run directory")
    runs = find_runs(folders)
    groups = group_runs(runs)
    unfinished = tuple(run for run in runs if run.outcome is None)
    return Comparison(tuple(measure(group, groups) for group in groups), unfinished)
