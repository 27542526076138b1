"""Text tables for a terminal, Markdown, LaTeX and CSV, and words of their texts."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box, get_console
from rich import table as rich_table
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement


@dataclass(frozen=True)
class Table:
    """Table of strings; columns in ``left`` are left-aligned, all others right-aligned."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: Sequence[str] = ()

    def show(self) -> None:
        """Print the table; on a narrow terminal its lines wrap."""
        table = rich_table.Table(box=box.SIMPLE)
        for column in self.columns:
            table.add_column(column, justify="left" if column in self.left else "right", no_wrap=True)
        for row in self.rows:
            table.add_row(*map(escape, row))  # a cell such as [a,b] is text, not markup
        wide = Console(width=1000)
        width = Measurement.get(wide, wide.options, table).maximum
        Console(width=max(width, get_console().width)).print(table)

    def markdown(self) -> str:
        """Markdown, without a trailing line break."""
        rules = ["---" if column in self.left else "---:" for column in self.columns]
        rows = [[cell.replace("|", r"\|") for cell in row] for row in (self.columns, rules, *self.rows)]
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)

    def latex(self) -> str:
        """A ``tabular`` that needs no LaTeX package, without a trailing line break."""
        kinds = "".join("l" if column in self.left else "r" for column in self.columns)
        head, *rows = (" & ".join(map(latex_text, cells)) + r" \\" for cells in (self.columns, *self.rows))
        lines = [rf"\begin{{tabular}}{{{kinds}}}", r"\hline", head, r"\hline", *rows, r"\hline", r"\end{tabular}"]
        return "\n".join(lines)

    def csv(self) -> str:
        """CSV with line feeds."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self.columns, *self.rows])
        return text.getvalue()


# LaTeX reads a bracket or star at the start of a row as an argument of the line break before it.
_LATEX = str.maketrans(
    {char: rf"\{char}" for char in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "[": "{[}", "]": "{]}", "*": "{*}"}
    | {"±": r"$\pm$", "−": "$-$", "×": r"$\times$", "–": "--", "…": r"\ldots{}"}
)


def latex_text(text: str) -> str:
    """Escape the special characters of LaTeX."""
    return text.translate(_LATEX)
