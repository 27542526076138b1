"""The comparison for a terminal, Markdown, LaTeX and spreadsheets."""

from rich import get_console

from noah_lightning.compare.columns import full_table, main_table
from noah_lightning.compare.comparison import Comparison
from noah_lightning.compare.summary import summary
from noah_lightning.tables import Table


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
