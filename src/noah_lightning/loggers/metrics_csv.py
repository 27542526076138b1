"""Logger of ``metrics.csv``: complete rows only; rows that cannot be written are kept until they can."""

import csv
import logging
import os
from io import StringIO
from itertools import takewhile
from pathlib import Path

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from noah_lightning.atomic_io import write_whole
from noah_lightning.errors import one_line

log = logging.getLogger("noah_lightning")


class MetricsFile(CSVLogger):
    """Lightning's logger of ``run_dir``/metrics.csv, with a writer that survives a full disk."""

    def __init__(self, run_dir: Path) -> None:
        super().__init__(run_dir, name="", version="")

    @property
    @rank_zero_experiment
    def experiment(self) -> "WholeRows":
        """The writer. It starts a new file, unless :meth:`resume` was called before."""
        if not isinstance(self._experiment, WholeRows):
            self._experiment = WholeRows(self.log_dir)
        return self._experiment

    @property
    def rows(self) -> int:
        """Rows logged since the run started, in the process that writes the file; a checkpoint holds this number."""
        return self._experiment.rows if isinstance(self._experiment, WholeRows) else 0

    def resume(self, rows: int) -> None:
        """Continue after the first ``rows`` of the file; what was logged later is logged again."""
        self._experiment = WholeRows(self.log_dir, rows)


class WholeRows(ExperimentWriter):
    """Lightning's writer, but a new metric does not rewrite the file in place, when a crash could empty it.

    The length of the file is counted in rows, because a new metric makes all rows longer.

    Args:
        log_dir: folder of the file.
        rows: number of rows to keep of an existing file.
    """

    _failed = False

    def __init__(self, log_dir: str, rows: int = 0) -> None:
        super().__init__(log_dir)
        self.rows, self.path = 0, Path(self.metrics_file_path)
        if self.path.is_file():
            self._cut(rows)

    def _check_log_dir_exists(self) -> None:
        """Do nothing; Lightning's method would remove the file."""

    def _cut(self, rows: int) -> None:
        header, *lines = self.path.read_bytes().splitlines(keepends=True) or [b""]
        commas = header.count(b",")
        whole = list(takewhile(lambda row: row.endswith(b"\n") and row.count(b",") == commas, lines[:rows]))
        if len(whole) < rows:
            log.warning("%s holds only %d of the %d rows logged before the checkpoint", self.path, len(whole), rows)
        if whole:
            self.rows, self.metrics_keys = len(whole), header.decode(errors="replace").strip().split(",")
            os.truncate(self.path, len(header) + sum(map(len, whole)))
        else:
            self.path.unlink()

    def log_metrics(self, metrics_dict: dict[str, float], step: int | None = None) -> None:
        super().log_metrics(metrics_dict, step)
        self.rows += 1

    def save(self) -> None:
        """Write the pending rows; a failure is logged once, and they are written at the next call."""
        keys = list(self.metrics_keys)
        try:
            if self.metrics:
                self._write(append=not self._record_new_keys() and self.path.is_file())
            self.metrics, self._failed = [], False
        except OSError as error:
            self.metrics_keys = keys  # those that the file has
            if not self._failed:
                log.warning("%s cannot be written (%s); the run continues", self.path, one_line(error))
            self._failed = True

    def _write(self, append: bool) -> None:
        """Append the pending rows to the file, or rewrite it with them and with new columns."""
        text = StringIO(newline="")
        table = csv.DictWriter(text, self.metrics_keys)
        if not append:
            table.writeheader()
            if self.path.is_file():
                with self.path.open(newline="", errors="replace") as old:
                    table.writerows(csv.DictReader(old))
        table.writerows(self.metrics)
        if not append:
            write_whole(self.path, lambda file: file.write(text.getvalue().encode()))
            return
        size = self.path.stat().st_size
        try:
            with self.path.open("ab") as file:
                file.write(text.getvalue().encode())
                file.flush()
                os.fsync(file.fileno())  # before a checkpoint that counts these rows
        except OSError:
            os.truncate(self.path, size)  # half a row
            raise
