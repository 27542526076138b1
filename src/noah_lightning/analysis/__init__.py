"""``noah compare``: finished runs side by side, from local files alone."""

from noah_lightning.analysis.page import html, write_html
from noah_lightning.analysis.report import csv, latex, markdown, show
from noah_lightning.analysis.statistics import Comparison, compare

__all__ = ["Comparison", "compare", "csv", "html", "latex", "markdown", "show", "write_html"]
