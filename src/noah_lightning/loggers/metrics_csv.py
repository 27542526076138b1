"""Logger of ``metrics.csv``: complete rows only; rows that cannot be written are kept until they can."""

import csv
import logging
import os
from collections.abc import Mapping
from io import StringIO
from itertools import takewhile
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from noah_lightning.atomic_io import write_whole
from noah_lightning.errors import one_line
from noah_lightning.run_dir import METRICS

log = logging.getLogger("noah_lightning")

EVERY = 100  # steps between two writes, besides those at each checkpoint and at the end


class MetricsFile(Logger):
    """Logger of ``run_dir``/metrics.csv, in rank 0; it starts a new file, unless :meth:`resume` is called.

    Attributes:
        rows: number logged since the run started; a checkpoint holds it, because new metrics make all rows longer.
    """

    name = version = ""

    def __init__(self, run_dir: Path) -> None:
        super().__init__()
        self.path, self.rows = run_dir / METRICS, 0
        self._pending: list[Mapping[str, float]] = []
        self._columns: list[str] = []  # of the file
        self._failed = False

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    def resume(self, rows: int) -> None:
        """Continue after the first ``rows`` of the file; what was logged later is logged again."""
        if not self.path.is_file():
            return
        header, *lines = self.path.read_bytes().splitlines(keepends=True) or [b""]
        commas = header.count(b",")
        whole = list(takewhile(lambda row: row.endswith(b"\n") and row.count(b",") == commas, lines[:rows]))
        if len(whole) < rows:
            log.warning("%s holds only %d of the %d rows logged before the checkpoint", self.path, len(whole), rows)
        if whole:
            self.rows, self._columns = len(whole), header.decode(errors="replace").strip().split(",")
            os.truncate(self.path, len(header) + sum(map(len, whole)))
        else:
            self.path.unlink()

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Do nothing; config.yaml holds the settings."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        step = self.rows if step is None else step
        self._pending.append({**metrics, "step": step})
        self.rows += 1
        if (step + 1) % EVERY == 0:
            self.save()

    @rank_zero_only
    def save(self) -> None:
        """Write the pending rows; a failure is logged once, and they are written at the next call."""
        if not self._pending:
            return
        columns = sorted(set(self._columns).union(*self._pending))
        try:
            if columns == self._columns and self.path.is_file():
                self._append()
            else:
                self._rewrite(columns)
            self._pending, self._columns, self._failed = [], columns, False
        except OSError as error:
            if not self._failed:
                log.warning("%s cannot be written (%s); the run continues", self.path, one_line(error))
            self._failed = True

    def finalize(self, status: str) -> None:
        self.save()

    def _append(self) -> None:
        size = self.path.stat().st_size
        try:
            with self.path.open("ab") as file:
                file.write(_lines(self._columns, self._pending))
                file.flush()
                os.fsync(file.fileno())  # before a checkpoint that counts these rows
        except OSError:
            os.truncate(self.path, size)  # half a row
            raise

    def _rewrite(self, columns: list[str]) -> None:
        old: list[Mapping[str, Any]] = []
        if self._columns and self.path.is_file():  # else the file is that of an earlier attempt
            with self.path.open(newline="", errors="replace") as file:
                old = list(csv.DictReader(file))
        header = dict(zip(columns, columns, strict=True))
        write_whole(self.path, lambda file: file.write(_lines(columns, [header, *old, *self._pending])))


def _lines(columns: list[str], rows: list[Any]) -> bytes:
    text = StringIO(newline="")
    csv.DictWriter(text, columns).writerows(rows)
    return text.getvalue().encode()
