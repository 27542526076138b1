"""From folders to everything that the tables and figures show."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from noah_lightning.compare.find import find_runs
from noah_lightning.compare.groups import group_runs
from noah_lightning.compare.measure import Entry, measure
from noah_lightning.compare.read import Run


@dataclass(frozen=True)
class Comparison:
    """Groups of finished runs, and the runs that have not finished."""

    entries: tuple[Entry, ...]
    unfinished: tuple[Run, ...]


def compare(folders: Sequence[Path]) -> Comparison:
    """Read every run in ``folders`` and measure each group of seeds against its baseline.

    Args:
        folders: run directories, or folders that hold some at most three levels down.

    Raises:
        ConfigError: a folder that is missing or holds no run.
    """
    runs = find_runs(folders)
    groups = group_runs(runs)
    unfinished = tuple(run for run in runs if run.outcome is None)
    return Comparison(tuple(measure(group, groups) for group in groups), unfinished)
