"""A comparison as tables and sentences: for a terminal, Markdown, LaTeX and spreadsheets."""

from collections.abc import Iterable

from rich import get_console

from noah_lightning.analysis.statistics import BASELINE, LEVEL, Comparison, Entry
from noah_lightning.analysis.tables import Table
from noah_lightning.loggers.console import duration


def signed(points: float) -> str:
    """``+0.55``, ``−0.30``; what rounds to nothing has no sign."""
    text = f"{abs(points):.2f}"
    if float(text) == 0:
        return text
    return f"{'−' if points < 0 else '+'}{text}"


def p_value(p: float) -> str:
    """``p = 0.21``, and ``p < 0.001`` below that."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def count(number: int, thing: str) -> str:
    """``1 seed``, ``2 seeds``."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


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


def show(comparison: Comparison) -> None:
    """Print the table, the summary and what did not go as it should."""
    if comparison.entries:
        main_table(comparison).show()
    for line in (*summary(comparison), *remarks(comparison)):
        get_console().print(line, markup=False, highlight=False, soft_wrap=True)


def markdown(comparison: Comparison) -> str:
    """Summary, table and remarks."""
    table = main_table(comparison)
    escaped = Table(table.columns, [[cell.replace("|", r"\|") for cell in row] for row in table.rows], table.left)
    parts = [" ".join(summary(comparison)), escaped.markdown() if comparison.entries else ""]
    parts.append("\n".join(f"* {remark}" for remark in remarks(comparison)))
    return "\n\n".join(part for part in parts if part)


def latex(comparison: Comparison) -> str:
    """A ``tabular`` of the main table; the summary stands above it as a comment."""
    return "\n".join([*(f"% {line}" for line in summary(comparison)), main_table(comparison).latex()])


def csv(comparison: Comparison) -> str:
    """Every number in full precision, a line per group."""
    return full_table(comparison).csv()


def remarks(comparison: Comparison) -> list[str]:
    """What the table cannot say: tests not made, runs set aside, runs that did not finish."""
    untested = [f"{e.group.label}: no test, {e.untested}" for e in comparison.entries if e.untested]
    partial = [
        f"{e.group.label}: difference and test are of {'seed' if len(e.seeds) == 1 else 'seeds'} "
        f"{', '.join(map(str, e.seeds))}, which its baseline {e.baseline.label} has too"
        for e in comparison.entries
        if e.baseline and e.seeds and set(e.seeds) != set(e.group.runs) | set(e.baseline.runs)
    ]
    repeated = [
        f"{run.path}: set aside, {e.group.runs[run.seed].path} has the same settings and seed"
        for e in comparison.entries
        for run in e.group.repeated
    ]
    return [
        *untested,
        *partial,
        *repeated,
        *(f"{run.path}: not finished; {run.reason}" for run in comparison.unfinished),
    ]
