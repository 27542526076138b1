"""Tables of text, for a terminal and for Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box, get_console
from rich import table as rich_table
from rich.console import Console
from rich.measure import Measurement


@dataclass(frozen=True)
class Table:
    """Cells as text; the columns named in ``left`` are aligned to the left, all others to the right."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: Sequence[str] = ()

    def show(self) -> None:
        """Print it, never cut off: where the terminal is narrower, its lines wrap."""
        table = self.rich()
        width = Measurement.get(Console(width=1000), Console(width=1000).options, table).maximum
        Console(width=max(width, get_console().width)).print(table)

    def rich(self) -> rich_table.Table:
        """For ``rich``'s console."""
        table = rich_table.Table(box=box.SIMPLE)
        for column in self.columns:
            table.add_column(column, justify="left" if column in self.left else "right", no_wrap=True)
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        """As GitHub reads it, without a line break at the end."""
        rules = ["---" if column in self.left else "---:" for column in self.columns]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in (self.columns, rules, *self.rows))
