"""The result in sentences that claim no more than the images and seeds can bear."""

from noah_lightning.compare.comparison import Comparison
from noah_lightning.compare.measure import BASELINE, Entry
from noah_lightning.compare.numbers import count, p_value, signed
from noah_lightning.compare.paired import LEVEL

FEW = 3  # so many differences are all told; of more, the highest


def summary(comparison: Comparison) -> list[str]:
    """What the comparison came to, one sentence each."""
    entries = comparison.entries
    if not entries:
        return [f"No run has finished; {count(len(comparison.unfinished), 'run')} without results."]
    measured = [entry for entry in entries if entry.difference is not None]
    if not measured:
        alone = [f"{entry.group.short}: {_accuracy(entry)}." for entry in entries[:FEW]]
        return [*alone, f"No difference is measured: {_no_baseline(comparison)}."]
    if len(measured) <= FEW:
        return [_difference(entry) for entry in measured]
    best = max(measured, key=lambda entry: entry.difference or 0)
    return [
        _difference(best),
        f"That is the highest of {len(measured)} groups; choosing the highest by the images it is measured with "
        "flatters it, and p values are not corrected for their number.",
    ]


def _accuracy(entry: Entry) -> str:
    return f"{entry.top1:.2f} % of {entry.outcomes[0].images:,} images ({count(len(entry.outcomes), 'seed')})"


def _no_baseline(comparison: Comparison) -> str:
    if all(entry.group.head == BASELINE for entry in comparison.entries):
        return f"every finished run has head={BASELINE}, the baseline"
    return f"there is no finished run with head={BASELINE} and the same model, data and recipe"


def _difference(entry: Entry) -> str:
    assert entry.difference is not None
    assert entry.baseline is not None
    points, paired = entry.difference, entry.paired
    if points == 0:
        stands = f"level with {entry.baseline.short}"
    else:
        over = f"{signed(points)} points over" if points > 0 else f"{abs(points):.2f} points below"
        stands = f"{over} {entry.baseline.short}"
    if paired is None:
        return f"{entry.group.short} is {stands}, not tested: {entry.untested}."
    facts = (
        f"{LEVEL} % interval {signed(paired.low)} to {signed(paired.high)}, McNemar {p_value(paired.p)}, "
        f"{paired.images:,} images × {count(paired.seeds, 'seed')}"
    )
    return f"{entry.group.short} is {stands} ({facts}): {_verdict(entry)}."


def _verdict(entry: Entry) -> str:
    paired = entry.paired
    assert paired is not None
    if not paired.beyond_chance:
        return "not settled"
    if paired.seeds == 1:
        return "more than chance on these images, but with one seed each another training may say otherwise"
    if not paired.one_sign:
        return "more than chance on these images, but the seeds do not agree in the sign"
    return "more than chance on these images, with the same sign for every seed"
