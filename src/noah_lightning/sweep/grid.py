"""A sweep over every combination."""

from collections import deque
from collections.abc import Sequence
from pathlib import Path

from noah_lightning.config.processes import processes_per_node
from noah_lightning.errors import ConfigError
from noah_lightning.sweep import folder as folders
from noah_lightning.sweep.plan import Job, expand, impossible
from noah_lightning.sweep.source import Source, say


class Grid(Source):
    """All jobs of a command, in their order.

    Raises:
        UserError: a mistake in whatever job, or none that can be.
    """

    def __init__(self, overrides: Sequence[str]) -> None:
        self._jobs = expand(overrides)
        self._impossible = impossible(self._jobs)
        if len(self._impossible) == len(self._jobs):
            raise ConfigError(f"no job of the sweep can be: {self._impossible[0]}")
        self._waiting: deque[Job] = deque()
        possible = [job for job in self._jobs if job.number not in self._impossible]
        super().__init__(len(self._jobs), max(processes_per_node(job.config.trainer) for job in possible))

    def open(self, folder: Path) -> None:
        for number, reason in self._impossible.items():
            self.skip(number, str(self._jobs[number]), reason)
        self.before = [job.number for job in self._jobs if folders.has_finished(folder / str(job.number))]
        if self.before:
            say(f"finished already: {', '.join(map(str, self.before))}")
        out = {*self.before, *self._impossible}
        self._waiting.extend(job for job in self._jobs if job.number not in out)

    def next(self) -> Job | None:
        return self._waiting.popleft() if self._waiting else None
