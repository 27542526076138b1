"""Reports of a comparison: for a terminal, and as Markdown, LaTeX, CSV and HTML."""

import math
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

from rich import get_console

from noah_lightning.analysis.groups import Group
from noah_lightning.analysis.page import render
from noah_lightning.analysis.ranking import Ranking
from noah_lightning.analysis.statistics import LEVEL, RESAMPLES, Comparison, Entry
from noah_lightning.analysis.summary import p_value, remarks, signed, summary
from noah_lightning.analysis.tables import Table
from noah_lightning.errors import ConfigError, count, one_line, printable, shell_word
from noah_lightning.loggers.console import duration
from noah_lightning.run_dir import CONFIG

NONE = "–"  # in a cell
METRICS = ("top-1", "mAP")  # in the order of their columns
SHOWN = 10  # classes with the largest gains and losses


def main_table(comparison: Comparison) -> Table:
    """One row per group, rounded; with columns for ranks, corrected p values and memory if there are any."""
    facts = [_row(entry, comparison.ranking) for entry in _by_rank(comparison)]
    absent = {"rank"} if comparison.ranking is None else set()
    optional = ("Holm", "GPU memory", *(f"{metric} %" for metric in METRICS))
    absent |= {column for column in optional if all(row[column] == NONE for row in facts)}
    columns = [column for column in facts[0] if column not in absent] if facts else ["group"]
    return Table(columns, [[row[column] for column in columns] for row in facts], left=["group"])


def _by_rank(comparison: Comparison) -> list[Entry]:
    """The entries of each model by average rank, groups without one last; in their order if there are no ranks."""
    ranks = comparison.ranking.by_group if comparison.ranking else {}
    return sorted(comparison.entries, key=lambda e: (e.group.model, ranks.get(e.group.label, math.inf)))


def _row(entry: Entry, ranking: Ranking | None) -> dict[str, str]:
    group, paired, outcomes = entry.group, entry.paired, list(entry.group.outcomes.values())
    rank = ranking.by_group.get(group.label) if ranking else None
    corrected = paired.corrected if paired else None
    best = ", ".join(str(outcome.best_epoch) for outcome in outcomes)
    last = ", ".join(map(str, sorted({outcome.epochs for outcome in outcomes})))
    mean = f"{group.top1:.2f}" + ("" if group.deviation is None else f" ± {group.deviation:.2f}")
    interval = f"{signed(paired.low)} to {signed(paired.high)}" if paired else "not tested"
    return {
        "group": group.label,
        "runs": str(len(outcomes)),
        "rank": NONE if rank is None else f"{rank:.2f}",
        **{f"{metric} %": mean if metric == group.metric else NONE for metric in METRICS},
        "difference": NONE if entry.difference is None else signed(entry.difference),
        f"{LEVEL} % interval": NONE if entry.difference is None else interval,
        "McNemar": p_value(paired.p) if paired else NONE,
        "Holm": NONE if corrected is None else p_value(corrected),
        "parameters": f"{outcomes[0].parameters:,}",
        "images/s": f"{group.mean('images_per_second'):,.0f}",
        "GPU memory": NONE if group.peak_memory is None else f"{group.peak_memory / 2**30:.2f} GiB",
        "time": duration(group.mean("train_seconds")),
        "best epoch": f"{best} of {last}",
    }


def _facts(entry: Entry, ranking: Ranking | None) -> dict[str, object]:
    group, paired = entry.group, entry.paired
    outcomes = list(group.outcomes.values())
    return {
        "group": group.label,
        "model": group.model,
        "head": group.head,
        "seeds": _spaced(group.runs),
        "average_rank": ranking.by_group.get(group.label) if ranking else None,
        "top1_mean": None if group.multilabel else group.top1,
        "top1_std": None if group.multilabel else group.deviation,
        "map_mean": group.top1 if group.multilabel else None,
        "map_std": group.deviation if group.multilabel else None,
        "correct": None if group.multilabel else _spaced(o.correct for o in outcomes),
        "images": _spaced(o.images for o in outcomes),
        "baseline": entry.baseline.label if entry.baseline else None,
        "paired_seeds": _spaced(entry.seeds),
        "difference": entry.difference,
        "interval_low": paired.low if paired else None,
        "interval_high": paired.high if paired else None,
        "mcnemar_p": paired.p if paired else None,
        "mcnemar_p_holm": paired.corrected if paired else None,
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
    facts = [_facts(entry, comparison.ranking) for entry in _by_rank(comparison)]
    rows = [["" if value is None else printable(str(value)) for value in row.values()] for row in facts]
    return Table(list(facts[0]) if facts else ["group"], rows).csv()


def html(comparison: Comparison) -> str:
    """A self-contained page: summary, tables, figures, remarks, configurations."""
    from noah_lightning.analysis.figures import draw_figures  # matplotlib takes half a second to import

    entries = comparison.entries
    pictures = groupby(draw_figures(comparison), key=lambda picture: picture.heading)
    return render(
        "page.html",
        title=f"Comparison of {count(len(entries), 'group')}",
        summary=summary(comparison),
        main_table=main_table(comparison) if entries else None,
        resamples=f"{RESAMPLES:,}",
        level=LEVEL,
        tests=comparison.tests,
        ranking=comparison.ranking,
        figures=[(heading, list(found)) for heading, found in pictures],
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


def write_figures(comparison: Comparison, folder: Path) -> None:
    """Write the figures of the page as PNG, replacing existing files; raises ConfigError if one cannot be written."""
    from noah_lightning.analysis.figures import draw_figures

    try:
        folder.mkdir(parents=True, exist_ok=True)
        for picture in draw_figures(comparison):
            picture.write(folder)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {one_line(error)}") from error
