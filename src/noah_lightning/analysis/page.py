"""The comparison as one page that needs no other file and no network."""

from collections.abc import Iterator, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from shlex import quote

from noah_lightning.analysis.report import count, main_table, remarks, signed, summary
from noah_lightning.analysis.statistics import LEVEL, RESAMPLES, ClassGain, Comparison, Entry, most_helped, most_hurt
from noah_lightning.analysis.tables import Table
from noah_lightning.errors import ConfigError, one_line
from noah_lightning.run_dir import CONFIG

NOTE = (
    "Top-1 is that of each run's best epoch, chosen on these validation images: a fair choice between heads, but "
    "higher than new images would give. ± is the standard deviation over seeds. Differences are of runs with "
    "the same seed. "
    f"The interval is a paired bootstrap over images ({RESAMPLES:,} resamples, {LEVEL} %); McNemar's test is exact, "
    "two-sided, and counts every image of every seed once. Both speak of these trained models on other such images, "
    "not of another training. p values are not corrected for the number of groups."
)


def html(comparison: Comparison) -> str:
    """The whole document: summary, table, heat map, learning curves, classes, unfinished runs, configurations."""
    sections = [*_results(comparison), *_figures(comparison), *_classes(comparison.entries)]
    sections += [*_remarks(comparison), *_configurations(comparison)]
    css = (files("noah_lightning.analysis") / "page.css").read_text()
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Comparison of {count(len(comparison.entries), "group")}</title>
<link rel="icon" href="data:,">
<style>
{css}</style>
</head>
<body>
<main>
{chr(10).join(sections)}
</main>
</body>
</html>
"""


def write_html(comparison: Comparison, path: Path) -> None:
    """Write the page to ``path``; an older file there is replaced.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        path.write_text(html(comparison), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {one_line(error)}") from error


def _results(comparison: Comparison) -> Iterator[str]:
    yield "<h1>Comparison of runs</h1>"
    yield from (f'<p class="summary">{escape(sentence)}</p>' for sentence in summary(comparison))
    if comparison.entries:
        yield _table(main_table(comparison))
        yield f'<p class="note">{escape(NOTE)}</p>'


def _figures(comparison: Comparison) -> Iterator[str]:
    # matplotlib takes a second to import, and only the page needs it
    from noah_lightning.analysis.figures import as_svg, draw_curves, draw_heat_map, heat_maps, style

    with style():
        maps = heat_maps(comparison.entries)
        if maps:
            yield "<h2>Heads and keys</h2>"
        for i, heat in enumerate(maps):
            svg = as_svg(draw_heat_map(heat), f"heat{i}", "heat map of mean top-1 over head_num and key_ratio")
            yield _figure(svg, heat.title)
        curves = draw_curves([entry.group for entry in comparison.entries])
        if curves:
            yield "<h2>Learning curves</h2>"
            svg = as_svg(curves, "curves", "validation top-1 and training loss by epoch")
            yield _figure(svg, "Means over seeds; the bands run from the lowest to the highest seed.")


def _classes(entries: Sequence[Entry]) -> Iterator[str]:
    told = [entry for entry in entries if entry.gains and entry.baseline]
    if told:
        yield "<h2>Classes</h2>"
        yield '<p class="note">Images right of those of the class, summed over seeds. Few images say little.</p>'
    for entry in told:
        assert entry.baseline is not None
        yield f"<h3>{escape(entry.group.short)} against {escape(entry.baseline.short)}</h3>"
        helped, hurt = most_helped(entry.gains), most_hurt(entry.gains)
        yield f'<div class="pair">{_gains("helped most", helped)}{_gains("hurt most", hurt)}</div>'


def _gains(title: str, gains: Sequence[ClassGain]) -> str:
    columns = [title, "images", "baseline right", "right", "points"]
    rows = [[g.name, f"{g.images:,}", f"{g.baseline:,}", f"{g.correct:,}", signed(g.points)] for g in gains]
    return _table(Table(columns, rows, left=[title])) if rows else f"<p>{escape(title)}: none</p>"


def _remarks(comparison: Comparison) -> Iterator[str]:
    told = remarks(comparison)
    if told:
        yield "<h2>Unfinished and untested</h2>"
        yield f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in told)}</ul>"


def _configurations(comparison: Comparison) -> Iterator[str]:
    if comparison.entries:
        yield "<h2>Runs and configurations</h2>"
    for entry in comparison.entries:
        commands = "\n".join(f"noah evaluate {quote(str(run.path))}" for run in entry.group.runs.values())
        first = next(iter(entry.group.runs.values()))
        yield (
            f"<details><summary>{escape(entry.group.label)}</summary>\n<pre>{escape(commands)}</pre>\n"
            f'<p class="note">{escape(str(first.path / CONFIG))}</p>\n'
            f"<pre>{escape((first.path / CONFIG).read_text())}</pre></details>"
        )


def _figure(svg: str, caption: str) -> str:
    return f"<figure>\n{svg}\n<figcaption>{escape(caption)}</figcaption>\n</figure>"


def _table(table: Table) -> str:
    marks = [' class="left"' if column in table.left else "" for column in table.columns]

    def row(kind: str, cells: Sequence[str]) -> str:
        scope = ' scope="col"' if kind == "th" else ""
        marked = zip(cells, marks, strict=True)
        return "".join(f"<{kind}{scope}{mark}>{escape(cell)}</{kind}>" for cell, mark in marked)

    body = "\n".join(f"<tr>{row('td', cells)}</tr>" for cells in table.rows)
    head = row("th", table.columns)
    return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'
