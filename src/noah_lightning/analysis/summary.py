"""The result of a comparison in words: summary and remarks."""

from collections.abc import Sequence

from noah_lightning.analysis.groups import BASELINE, Group
from noah_lightning.analysis.ranking import ALPHA, Ranking
from noah_lightning.analysis.statistics import LEVEL, Comparison, Entry
from noah_lightning.errors import count, printable

FEW = 3  # number of differences up to which all are reported; of more, only the highest


def signed(points: float) -> str:
    """``+0.55`` or ``−0.30``; without a sign if it rounds to zero."""
    text = f"{points:+.2f}".replace("-", "−")
    return "0.00" if text[1:] == "0.00" else text


def p_value(p: float) -> str:
    """``p = 0.21``, or ``p < 0.001``."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def summary(comparison: Comparison) -> list[str]:
    """The result in words, one sentence each."""
    entries = comparison.entries
    if not entries:
        return [f"No run has finished; {count(len(comparison.unfinished), 'run')} without results."]
    return [*_differences(entries), *(_ranks(comparison.ranking) if comparison.ranking else ())]


def _differences(entries: Sequence[Entry]) -> list[str]:
    """The differences to the baselines, or of many the largest and the number of significant ones."""
    measured = [entry for entry in entries if entry.difference is not None]
    if not measured:
        reason = f"there is no finished run with head={BASELINE} and the same model, data and recipe"
        if all(entry.group.head == BASELINE for entry in entries):
            reason = f"every finished run has head={BASELINE}, the baseline"
        return [*(_accuracy(entry.group) for entry in entries[:FEW]), f"There is nothing to compare with: {reason}."]
    if len(measured) <= FEW:
        return [_difference(entry) for entry in measured]
    tested = [entry for entry in measured if entry.paired]
    significant = [entry.difference or 0 for entry in tested if entry.paired and entry.paired.significant]
    better, worse = (sum(sign * points > 0 for points in significant) for sign in (1, -1))
    return [
        _difference(max(measured, key=lambda entry: entry.difference or 0)),
        f"This is the highest of {len(measured)} groups; choosing it on the images it is evaluated on is optimistic. "
        f"Of {count(len(tested), 'tested group')}, {better} are significantly above the baseline and {worse} below.",
    ]


def _ranks(ranking: Ranking) -> list[str]:
    """The best ranks, Friedman's test, and what the blocks can show."""
    test, ranks = ranking.test, ranking.ranks
    best, *others = ranks.values()
    close = sum(rank - best < test.critical_difference for rank in others)
    listed = ", ".join(f"{label} {rank:.2f}" for label, rank in [*ranks.items()][:FEW])
    found = "differ" if test.p < ALPHA else "do not differ significantly"
    sentences = [
        f"Best average ranks of {len(ranks)} head settings over {ranking.blocks} blocks: {listed}.",
        f"By Friedman's test the settings {found} (χ² = {test.statistic:.2f}, {p_value(test.p)}); {close} of the "
        f"{len(others)} others are within the critical difference of the best ({test.critical_difference:.2f}, "
        f"Nemenyi, {100 * ALPHA:g} %).",
    ]
    if ranking.seeds_only:
        shared = " and share the validation images" if ranking.same_images else ""
        sentences.append(
            f"The blocks differ only in the seed{shared}: the test measures the noise of seeds only, "
            "and does not show whether the order holds for other data sets or models."
        )
    elif ranking.data_sets < ranking.blocks:
        sentences.append(
            f"The {ranking.blocks} blocks are of {count(ranking.data_sets, 'data set')}: blocks of one data set are "
            "not independent, so Friedman's p value is too small."
        )
    return sentences


def _accuracy(group: Group) -> str:
    outcomes = list(group.outcomes.values())
    percent = f"mAP {group.top1:.2f} % over" if group.multilabel else f"{group.top1:.2f} % of"
    return f"{group.short}: {percent} {outcomes[0].images:,} images ({count(len(outcomes), 'seed')})."


def _difference(entry: Entry) -> str:
    points, paired = entry.difference, entry.paired
    assert points is not None
    assert entry.baseline is not None
    position = "level with" if points == 0 else f"{abs(points):.2f} points below"
    if points > 0:
        position = f"{signed(points)} points over"
    start = f"{entry.group.short} is {position} {entry.baseline.short}"
    if paired is None:
        return f"{start}, not tested: {printable(entry.untested)}."
    if not paired.significant:
        verdict = "not significant"
    elif paired.seeds == 1:
        verdict = "significant on these images, but with one seed each, another training run may differ"
    elif not paired.one_sign:
        verdict = "significant on these images, but the seeds disagree in the sign"
    else:
        verdict = "significant on these images, with the same sign for every seed"
    corrected = "" if paired.corrected is None else f", {p_value(paired.corrected)} after Holm's correction"
    return (
        f"{start} ({LEVEL} % interval {signed(paired.low)} to {signed(paired.high)}, "
        f"McNemar {p_value(paired.p)}{corrected}, "
        f"{paired.images:,} images × {count(paired.seeds, 'seed')}): {verdict}."
    )


def remarks(comparison: Comparison) -> list[str]:
    """Notes on missing tests, ignored runs and unfinished runs."""
    entries = comparison.entries
    found = [f"{entry.group.label}: not tested, {entry.untested}" for entry in entries if entry.untested]
    for entry in entries:
        if entry.baseline and entry.seeds and set(entry.seeds) != {*entry.group.runs, *entry.baseline.runs}:
            found.append(
                f"{entry.group.label}: difference and test only use {'seed' if len(entry.seeds) == 1 else 'seeds'} "
                f"{', '.join(map(str, entry.seeds))}, in common with its baseline {entry.baseline.label}"
            )
    if comparison.unranked:
        found.append(f"no ranks: {comparison.unranked}")
    if comparison.ranking:
        found += [f"left out of the ranks: {block}" for block in comparison.ranking.left_out]
    for group in (entry.group for entry in entries):
        for run in group.repeated:
            found.append(f"{run.path}: ignored, {group.runs[run.seed].path} has the same settings and seed")
    found += [f"{run.path}: not finished; {run.reason}" for run in comparison.unfinished]
    return list(map(printable, found))
