"""``noah compare``: finished runs side by side, from local files alone."""

from noah_lightning.compare.comparison import Comparison, compare
from noah_lightning.compare.page import html, write_html
from noah_lightning.compare.text import csv, latex, markdown, show

__all__ = ["Comparison", "compare", "csv", "html", "latex", "markdown", "show", "write_html"]
