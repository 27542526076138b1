"""A matplotlib figure as SVG to be put into a page, in whatever color the page has its text."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.figure import Figure

_INK = "#010203"  # stands for the page's text color until the figure is text itself


@contextmanager
def style() -> Iterator[None]:
    """Draw and write figures inside this: thin, small, transparent, letters as letters."""
    inked = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "noah",  # the same figure has the same text every time
        "font.size": 9,
        "axes.titlesize": 10,
        "axes.linewidth": 0.6,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.facecolor": "none",
        "figure.facecolor": "none",
        "legend.frameon": False,
        "grid.alpha": 0.25,
        "text.parse_math": False,  # a label's dollar sign is a dollar sign
        **dict.fromkeys(inked, _INK),
    }
    with matplotlib.rc_context(settings):
        yield


def as_svg(figure: Figure, name: str, title: str) -> str:
    """``<svg>…</svg>``; ``name`` sets its ids apart from other figures', ``title`` is for those who cannot see it."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].rstrip()
    svg = re.sub(
        r"\s*<metadata>.*?</metadata>|\s*<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL
    )  # page.css has it
    svg = svg.replace(' xmlns:xlink="http://www.w3.org/1999/xlink"', "").replace("xlink:href=", "href=")
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", svg)  # a list of what few readers have
    svg = svg.replace(_INK, "currentColor")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)
