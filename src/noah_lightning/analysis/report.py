"""Reports of a comparison: for a terminal, and as Markdown, LaTeX, CSV and HTML."""

from collections.abc import Iterable
from pathlib import Path

from rich import get_console

from noah_lightning.analysis.groups import BASELINE, Group
from noah_lightning.analysis.page import render
from noah_lightning.analysis.statistics import LEVEL, RESAMPLES, Comparison, Entry
from noah_lightning.analysis.tables import Table
from noah_lightning.errors import ConfigError, count, one_line, printable, shell_word
from noah_lightning.loggers.console import duration
from noah_lightning.run_dir import CONFIG

NONE = "–"  # in a cell
FEW = 3  # number of differences up to which all are reported; of more, only the highest
SHOWN = 10  # classes with the largest gains and losses


def signed(points: float) -> str:
    """``+0.55`` or ``−0.30``; without a sign if it rounds to zero."""
    text = f"{points:+.2f}".replace("-", "−")
    return "0.00" if text[1:] == "0.00" else text


def p_value(p: float) -> str:
    """``p = 0.21``, or ``p < 0.001``."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def main_table(comparison: Comparison) -> Table:
    """One row per group, rounded; with a memory column if a run used a GPU."""
    memory = any(entry.group.peak_memory is not None for entry in comparison.entries)
    columns = ["group", "runs", "top-1 %", "difference", f"{LEVEL} % interval", "McNemar"]
    columns += ["parameters", "images/s", *(["GPU memory"] if memory else []), "time", "best epoch"]
    rows = []
    for entry in comparison.entries:
        group, paired, outcomes = entry.group, entry.paired, list(entry.group.outcomes.values())
        spread = "" if group.deviation is None else f" ± {group.deviation:.2f}"
        cells = [group.label, str(len(outcomes)), f"{group.top1:.2f}{spread}"]
        if entry.difference is None:
            cells += [NONE] * 3
        elif paired is None:
            cells += [signed(entry.difference), "not tested", NONE]
        else:
            cells += [signed(entry.difference), f"{signed(paired.low)} to {signed(paired.high)}", p_value(paired.p)]
        cells += [f"{outcomes[0].parameters:,}", f"{group.mean('images_per_second'):,.0f}"]
        if memory:
            cells.append(NONE if group.peak_memory is None else f"{group.peak_memory / 2**30:.2f} GiB")
        best = ", ".join(str(outcome.best_epoch) for outcome in outcomes)
        last = ", ".join(map(str, sorted({outcome.epochs for outcome in outcomes})))
        rows.append([*cells, duration(group.mean("train_seconds")), f"{best} of {last}"])
    return Table(columns, rows, left=["group"])


def _facts(entry: Entry) -> dict[str, object]:
    group, paired = entry.group, entry.paired
    outcomes = list(group.outcomes.values())
    return {
        "group": group.label,
        "model": group.model,
        "head": group.head,
        "seeds": _spaced(group.runs),
        "top1_mean": group.top1,
        "top1_std": group.deviation,
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
        "images_per_second": group.mean("images_per_second"),
        "peak_memory_bytes": group.peak_memory,
        "train_seconds": group.mean("train_seconds"),
        "best_epochs": _spaced(o.best_epoch for o in outcomes),
        "last_epochs": _spaced(o.epochs for o in outcomes),
        "folders": _spaced(run.path for run in group.runs.values()),
    }


def _spaced(values: Iterable[object]) -> str:
    return " ".join(map(str, values))


def summary(comparison: Comparison) -> list[str]:
    """The result in words, one sentence each."""
    entries = comparison.entries
    if not entries:
        return [f"No run has finished; {count(len(comparison.unfinished), 'run')} without results."]
    measured = [entry for entry in entries if entry.difference is not None]
    if not measured:
        reason = f"there is no finished run with head={BASELINE} and the same model, data and recipe"
        if all(entry.group.head == BASELINE for entry in entries):
            reason = f"every finished run has head={BASELINE}, the baseline"
        return [*(_accuracy(entry.group) for entry in entries[:FEW]), f"There is nothing to compare with: {reason}."]
    if len(measured) <= FEW:
        return [_difference(entry) for entry in measured]
    return [
        _difference(max(measured, key=lambda entry: entry.difference or 0)),
        f"This is the highest of {len(measured)} groups; choosing it on the images it is evaluated on is optimistic, "
        "and p values are not corrected for the number of groups.",
    ]


def _accuracy(group: Group) -> str:
    outcomes = list(group.outcomes.values())
    return f"{group.short}: {group.top1:.2f} % of {outcomes[0].images:,} images ({count(len(outcomes), 'seed')})."


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
    return (
        f"{start} ({LEVEL} % interval {signed(paired.low)} to {signed(paired.high)}, McNemar {p_value(paired.p)}, "
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
    for group in (entry.group for entry in entries):
        for run in group.repeated:
            found.append(f"{run.path}: ignored, {group.runs[run.seed].path} has the same settings and seed")
    found += [f"{run.path}: not finished; {run.reason}" for run in comparison.unfinished]
    return list(map(printable, found))


def show(comparison: Comparison) -> None:
    """Print the table, the summary and the remarks."""
    if comparison.entries:
        main_table(comparison).show()
    for line in (*summary(comparison), *remarks(comparison)):
        get_console().print(line, markup=False, highlight=False, soft_wrap=True)


def markdown(comparison: Comparison) -> str:
    """Summary, table and remarks as Markdown."""
    table = main_table(comparison).markdown() if comparison.entries else ""
    listed = "\n".join(f"* {remark}" for remark in remarks(comparison))
    return "\n\n".join(part for part in (" ".join(summary(comparison)), table, listed) if part)


def latex(comparison: Comparison) -> str:
    """A ``tabular`` of the main table, with the summary above it as a comment."""
    return "\n".join([*(f"% {line}" for line in summary(comparison)), main_table(comparison).latex()])


def csv(comparison: Comparison) -> str:
    """Every number in full precision, one line per group; missing values are empty, lists separated by spaces."""
    facts = [_facts(entry) for entry in comparison.entries]
    rows = [["" if value is None else printable(str(value)) for value in row.values()] for row in facts]
    return Table(list(facts[0]) if facts else ["group"], rows).csv()


def html(comparison: Comparison) -> str:
    """A self-contained page: summary, tables, figures, remarks, configurations."""
    from noah_lightning.analysis.figures import draw_figures  # matplotlib takes half a second to import

    entries = comparison.entries
    heat_maps, curves = draw_figures([entry.group for entry in entries])
    return render(
        "page.html",
        title=f"Comparison of {count(len(entries), 'group')}",
        summary=summary(comparison),
        main_table=main_table(comparison) if entries else None,
        resamples=f"{RESAMPLES:,}",
        level=LEVEL,
        heat_maps=heat_maps,
        curves=curves,
        classes=[class_tables(entry) for entry in entries if entry.gains],
        remarks=remarks(comparison),
        groups=[_commands_and_configuration(entry.group) for entry in entries],
    )


def class_tables(entry: Entry) -> tuple[str, list[Table]]:
    """A heading, and the classes with the largest gains and losses."""
    assert entry.baseline is not None
    helped = [gain for gain in entry.gains if gain.points > 0]
    hurt = [gain for gain in reversed(entry.gains) if gain.points < 0]
    tables = []
    for title, gains in (("helped most", helped[:SHOWN]), ("hurt most", hurt[:SHOWN])):
        rows = [[g.name, f"{g.images:,}", f"{g.baseline:,}", f"{g.correct:,}", signed(g.points)] for g in gains]
        tables.append(Table([title, "images", "baseline right", "right", "points"], rows, left=[title]))
    return f"{entry.group.short} against {entry.baseline.short}", tables


def _commands_and_configuration(group: Group) -> tuple[str, list[str], Path, str]:
    """The label, a command for each run, and the first run's configuration: path and text."""
    commands = [f"noah evaluate {shell_word(run.path)}" for run in group.runs.values()]
    path = next(iter(group.runs.values())).path / CONFIG
    return group.label, commands, path, path.read_text(encoding="utf-8")


def write_html(comparison: Comparison, path: Path) -> None:
    """Write the page to ``path``, replacing an existing file; raises ConfigError if it cannot be written."""
    try:
        path.write_text(html(comparison), encoding="utf-8", errors="backslashreplace")  # some paths are not UTF-8
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {one_line(error)}") from error
