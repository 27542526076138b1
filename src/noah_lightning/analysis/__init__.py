"""Comparison of finished runs (``noah compare``), from local files only."""

from noah_lightning.analysis.report import csv, html, latex, markdown, show, write_figures, write_html
from noah_lightning.analysis.statistics import Comparison, compare

__all__ = ["Comparison", "compare", "csv", "html", "latex", "markdown", "show", "write_figures", "write_html"]
