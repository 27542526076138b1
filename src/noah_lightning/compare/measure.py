"""A group's numbers, and how it stands against its baseline."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from noah_lightning.compare.classes import ClassGain, class_gains
from noah_lightning.compare.groups import Group, identity
from noah_lightning.compare.paired import Paired, compare_paired
from noah_lightning.compare.read import Outcome, Predictions, Run, read_predictions
from noah_lightning.errors import ConfigError

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
    def outcomes(self) -> list[Outcome]:
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
        """Of one of :class:`Outcome`'s facts, over the seeds."""
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


def _top1(run: Run) -> float:
    assert run.outcome is not None
    return run.outcome.top1


def _test(pairs: Sequence[tuple[Run, Run]]) -> tuple[Paired, list[ClassGain]]:
    """Raises ConfigError with the reason where the predictions cannot be paired."""
    ours = [read_predictions(run) for run, _ in pairs]
    theirs = [read_predictions(run) for _, run in pairs]
    for one, other in zip(ours, theirs, strict=True):
        if not np.array_equal(one.labels, other.labels):
            raise ConfigError("other validation images than the baseline's")
    runs = [run for pair in pairs for run in pair]
    paired = compare_paired([o.right for o in ours], [t.right for t in theirs], _same_images(runs, ours))
    return paired, class_gains(ours, theirs)


def _same_images(runs: Sequence[Run], said: Sequence[Predictions]) -> bool:
    """Whether all seeds were validated with one set of images: data.seed, where there is one, draws another."""
    one_draw = len({run.settings.get("data.seed") for run in runs}) == 1
    return one_draw and all(np.array_equal(said[0].labels, other.labels) for other in said)
