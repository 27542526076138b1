"""The tables: one that fits a page, and one with everything."""

from collections.abc import Iterable

from noah_lightning.compare.comparison import Comparison
from noah_lightning.compare.measure import Entry
from noah_lightning.compare.numbers import p_value, signed
from noah_lightning.compare.paired import LEVEL
from noah_lightning.console import duration
from noah_lightning.tables import Table

DASH = "–"  # there is none


def main_table(comparison: Comparison) -> Table:
    """One row per group, rounded; the memory column is there where a GPU was."""
    memory = any(entry.peak_memory is not None for entry in comparison.entries)
    columns = ["group", "seeds", "top-1 %", "difference", f"{LEVEL} % interval", "McNemar"]
    columns += ["parameters", "images/s", *(["GPU memory"] if memory else []), "time", "best epoch"]
    rows = []
    for entry in comparison.entries:
        cells = [entry.group.label, str(len(entry.outcomes)), _top1(entry), *_against_baseline(entry)]
        cells += [f"{entry.outcomes[0].parameters:,}", f"{entry.mean('images_per_second'):,.0f}"]
        cells += [_memory(entry.peak_memory)] if memory else []
        rows.append([*cells, duration(entry.mean("train_seconds")), _epochs(entry)])
    return Table(columns, rows, left=["group"])


def full_table(comparison: Comparison) -> Table:
    """Every number in full precision, empty where there is none; lists are separated by spaces."""
    columns: list[str] = []
    rows = []
    for entry in comparison.entries:
        facts = _facts(entry)
        columns = list(facts)
        rows.append(["" if value is None else str(value) for value in facts.values()])
    return Table(columns or ["group"], rows, left=["group"])


def _facts(entry: Entry) -> dict[str, object]:
    paired, outcomes = entry.paired, entry.outcomes
    return {
        "group": entry.group.label,
        "model": entry.group.model,
        "head": entry.group.head,
        "seeds": _spaced(entry.group.runs),
        "top1_mean": entry.top1,
        "top1_std": entry.deviation,
        "correct": _spaced(o.correct for o in outcomes),
        "images": _spaced(o.images for o in outcomes),
        "baseline": entry.baseline.label if entry.baseline else None,
        "paired_seeds": _spaced(entry.seeds),
        "difference": entry.difference,
        "interval_low": paired.low if paired else None,
        "interval_high": paired.high if paired else None,
        "mcnemar_p": paired.p if paired else None,
        "only_group_right": paired.better if paired else None,
        "only_baseline_right": paired.worse if paired else None,
        "untested": entry.untested,
        "parameters": outcomes[0].parameters,
        "images_per_second": entry.mean("images_per_second"),
        "peak_memory_bytes": entry.peak_memory,
        "train_seconds": entry.mean("train_seconds"),
        "best_epochs": _spaced(o.best_epoch for o in outcomes),
        "last_epochs": _spaced(o.epochs for o in outcomes),
        "folders": " ".join(str(run.path) for run in entry.group.runs.values()),
    }


def _spaced(values: Iterable[object]) -> str:
    return " ".join(map(str, values))


def _top1(entry: Entry) -> str:
    spread = "" if entry.deviation is None else f" ± {entry.deviation:.2f}"
    return f"{entry.top1:.2f}{spread}"


def _against_baseline(entry: Entry) -> list[str]:
    """Difference, interval, p."""
    if entry.difference is None:
        return [DASH] * 3
    if entry.paired is None:
        return [signed(entry.difference), "not tested", DASH]
    interval = f"{signed(entry.paired.low)} to {signed(entry.paired.high)}"
    return [signed(entry.difference), interval, p_value(entry.paired.p)]


def _memory(peak: int | None) -> str:
    return DASH if peak is None else f"{peak / 2**30:.2f} GiB"


def _epochs(entry: Entry) -> str:
    """``3 of 10``, or ``3, 9 of 10`` for two seeds."""
    best = ", ".join(str(outcome.best_epoch) for outcome in entry.outcomes)
    last = ", ".join(str(epochs) for epochs in sorted({outcome.epochs for outcome in entry.outcomes}))
    return f"{best} of {last}"
