"""``metrics.csv``: whole rows only, and rows that cannot be written wait until they can."""

import csv
import logging
import os
from io import StringIO
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from noah_lightning.atomic_io import write_whole
from noah_lightning.errors import one_line

log = logging.getLogger("noah_lightning")


class MetricsFile(CSVLogger):
    """Lightning's logger of ``run_dir``/metrics.csv, with a writer that no full disk stops."""

    def __init__(self, run_dir: Path) -> None:
        super().__init__(run_dir, name="", version="")

    @property
    @rank_zero_experiment
    def experiment(self) -> "WholeRows":
        """The writer; a new one begins a new file."""
        if not isinstance(self._experiment, WholeRows):
            self._experiment = WholeRows(log_dir=self.log_dir)
        return self._experiment


class WholeRows(ExperimentWriter):
    """Lightning's writes its file anew when a metric is new, in place: a crash or a full disk would empty it."""

    _failed = False

    def save(self) -> None:
        """Write what there is to write; where that fails it is told once, and tried again the next time."""
        if not self.metrics:
            return
        path, keys = Path(self.metrics_file_path), list(self.metrics_keys)
        try:
            if self._record_new_keys() or not path.is_file():
                self._write_anew(path)
            else:
                self._append(path)
        except OSError as error:
            self.metrics_keys = keys  # those that the file has
            if not self._failed:
                log.warning("%s cannot be written (%s); the run goes on", path, one_line(error))
            self._failed = True
            return
        self._failed = False
        self.metrics = []

    def _write_anew(self, path: Path) -> None:
        old: list[dict[str, Any]] = []
        if path.is_file():
            with path.open(newline="") as file:
                old = list(csv.DictReader(file))
        write_whole(path, lambda file: file.write(self._lines([*old, *self.metrics], header=True)))

    def _append(self, path: Path) -> None:
        size = path.stat().st_size
        try:
            with path.open("ab") as file:
                file.write(self._lines(self.metrics, header=False))
        except OSError:
            os.truncate(path, size)  # half a row
            raise

    def _lines(self, rows: list[dict[str, Any]], header: bool) -> bytes:
        text = StringIO(newline="")
        writer = csv.DictWriter(text, fieldnames=self.metrics_keys)
        if header:
            writer.writeheader()
        writer.writerows(rows)
        return text.getvalue().encode()
