"""Ranks of head settings over data sets and seeds: Friedman's test and Nemenyi's critical difference."""

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from noah_lightning.analysis.groups import Group, identity, make_labels
from noah_lightning.errors import ConfigError

ALPHA = 0.05
HEAD = ("head.",)  # settings that are ranked; all others, and the seed, make a block
FEWEST_SETTINGS, FEWEST_BLOCKS = 3, 2
LISTED = 3  # of more blocks or settings only the number is reported

Block = tuple[Hashable, int]  # all settings but those of the head, and the seed


@dataclass(frozen=True)
class RankTest:
    """Friedman's test with average ranks, in which 1 is best."""

    average: np.ndarray  # float (settings,)
    statistic: float  # chi-squared, corrected for ties
    p: float
    critical_difference: float  # Nemenyi; average ranks that are closer do not differ significantly


def friedman(scores: np.ndarray) -> RankTest:
    """Rank the columns of ``scores``, float (blocks, settings), in each row; the highest score has rank 1."""
    from scipy.stats import friedmanchisquare, rankdata  # takes most of a second to import

    average = rankdata(-scores, axis=1).mean(axis=0)  # ties share the mean of their ranks
    critical_difference = nemenyi(scores.shape[1], len(scores))
    if (scores == scores[:, :1]).all():  # nothing to rank: the statistic would be 0 / 0
        return RankTest(average, 0.0, 1.0, critical_difference)
    statistic, p = friedmanchisquare(*scores.T)
    return RankTest(average, float(statistic), float(p), critical_difference)


def nemenyi(settings: int, blocks: int) -> float:
    """Critical difference of average ranks at the level ALPHA."""
    from scipy.stats import studentized_range

    q = studentized_range.ppf(1 - ALPHA, settings, math.inf) / math.sqrt(2)
    return float(q * math.sqrt(settings * (settings + 1) / (6 * blocks)))


@dataclass(frozen=True)
class Ranking:
    """Average ranks of head settings over the blocks that have a run of each setting."""

    ranks: Mapping[str, float]  # by label such as head=noah head_num=4, the best first
    by_group: Mapping[str, float]  # by the label of the group
    test: RankTest
    blocks: int
    data_sets: int
    seeds_only: bool  # the blocks differ only in the seed
    same_images: bool  # and share the validation images
    left_out: tuple[str, ...]  # blocks without a run of each setting, with the reason

    @property
    def cliques(self) -> list[tuple[float, float]]:
        """First and last rank of each largest set of settings that do not differ significantly."""
        ranks, found = sorted(self.ranks.values()), list[tuple[float, float]]()
        for first in ranks:
            last = max(rank for rank in ranks if rank == first or rank - first < self.test.critical_difference)
            if last > first and (not found or last > found[-1][1]):
                found.append((first, last))
        return found


def rank_heads(groups: Sequence[Group]) -> Ranking:
    """Rank the head settings of ``groups`` by score; raises ConfigError with the reason if it cannot."""
    heads = _labels(groups, ("head.name",), only=HEAD)
    if len(heads) < FEWEST_SETTINGS:
        raise ConfigError(f"ranks need at least {FEWEST_SETTINGS} settings of the head, and there are {len(heads)}")
    cells: defaultdict[Block, dict[Hashable, float]] = defaultdict(dict)
    for group in groups:
        for seed, outcome in group.outcomes.items():
            cells[identity(group.settings, without=HEAD), seed][identity(group.settings, only=HEAD)] = outcome.score
    full = [block for block, row in cells.items() if len(row) == len(heads)]
    left_out = _missing(groups, cells, heads)
    if len(full) < FEWEST_BLOCKS:
        missing = "".join(f"; {reason}" for reason in left_out)
        raise ConfigError(
            f"ranks need at least {FEWEST_BLOCKS} blocks (data set, model, recipe and seed) that have a finished run "
            f"of each of the {len(heads)} settings of the head, and there are {len(full)}{missing}"
        )
    test = friedman(np.array([[cells[block][head] for head in heads] for block in full]))
    average = dict(zip(heads, map(float, test.average), strict=True))
    used = [g for g in groups if any(base == identity(g.settings, without=HEAD) for base, _ in full)]
    draws = {str(run.settings.get("data.seed")) for group in used for run in group.runs.values()}  # of digits
    return Ranking(
        ranks={heads[head]: average[head] for head in sorted(heads, key=lambda head: average[head])},
        by_group={group.label: average[identity(group.settings, only=HEAD)] for group in used},
        test=test,
        blocks=len(full),
        data_sets=len({(str(g.settings.get("data.name")), str(g.settings.get("data.root"))) for g in used}),
        seeds_only=len({base for base, _ in full}) == 1,
        same_images=len(draws) == 1,
        left_out=tuple(left_out),
    )


def _labels(
    groups: Iterable[Group], names: tuple[str, ...], only: tuple[str, ...] = ("",), without: tuple[str, ...] = ()
) -> dict[Hashable, str]:
    """A label for each distinct part of the settings, by its identity."""
    found = {}
    for group in groups:
        part = {k: v for k, v in group.settings.items() if k.startswith(only) and not k.startswith(without)}
        found[identity(part)] = part
    return dict(zip(found, make_labels([*found.values()], names), strict=True))


def _missing(
    groups: Sequence[Group], cells: Mapping[Block, Mapping[Hashable, float]], heads: Mapping[Hashable, str]
) -> list[str]:
    """Blocks that lack a run, each with the settings that it lacks; of many the number."""
    bases = _labels(groups, ("model.name",), without=HEAD)
    found = []
    for (base, seed), row in cells.items():
        if lacks := [label for head, label in heads.items() if head not in row]:
            names = ", ".join(lacks[:LISTED]) + (f" and {len(lacks) - LISTED} more" if len(lacks) > LISTED else "")
            block = f"seed {seed}" if len(bases) == 1 else f"{bases[base]} seed {seed}"
            found.append(f"{block} has no finished run of {names}")
    more = [f"{len(found) - LISTED} more blocks lack runs"] if len(found) > LISTED else []
    return found[:LISTED] + more
