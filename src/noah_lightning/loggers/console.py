"""Console logging, the log file of a run, and filters for messages of the libraries."""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rich import get_console
from rich.logging import RichHandler

from noah_lightning.distributed.environment import rank, replace_what_stdout_lacks
from noah_lightning.errors import printable

log = logging.getLogger("noah_lightning")

# Warnings of the libraries that need no action by the user.
_CHATTER = (
    ".*does not have many workers.*",  # the number of workers suits the machine, or the data is in memory
    ".*smaller than the logging interval.*",  # a short epoch, whose totals are logged anyway
    ".*`srun` command is available.*",  # a cluster node may train without SLURM
    ".*sync_dist=True.*",  # the task sums over the processes itself
    ".*in eval mode at the start of training.*",  # the average of the weights
    ".*ended before the epoch ended and your dataloader is not resumable.*",  # it yields the remaining batches
    "Checkpoint directory .* exists and is not empty.*",  # as in every resumed run
    ".*isinstance\\(treespec, LeafSpec\\).* is deprecated.*",  # Lightning's own use of torch
)


def _in_one_line(record: logging.LogRecord) -> bool:
    record.msg, record.args = printable(record.getMessage()), None
    return True


log.addFilter(_in_one_line)  # also for records of other modules, as all have this logger


def start_logging() -> None:
    """Log to standard output in rank 0, and show messages of the libraries only from warnings on."""
    replace_what_stdout_lacks()
    log.setLevel(logging.INFO)
    log.propagate = False
    log.handlers.clear()
    if rank() > 0:
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        return
    on_screen = RichHandler(console=get_console(), show_time=False, show_level=False, show_path=False)
    log.addHandler(on_screen if on_terminal() else logging.StreamHandler(sys.stdout))
    silence_libraries()


def silence_libraries() -> None:
    """Hide messages of the libraries below warnings, and warnings that need no action by the user."""
    for library in ("lightning.pytorch", "lightning.fabric", "timm"):
        logging.getLogger(library).setLevel(logging.WARNING)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it warns at each of ten retries
    for chatter in _CHATTER:
        warnings.filterwarnings("ignore", message=chatter)


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Also write all log lines to ``path``."""
    handler = _LogFile(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        with suppress(OSError):  # has been reported
            handler.close()


class _LogFile(logging.FileHandler):
    """Log file that reports a full disk once; Python's would print a traceback for each line."""

    _failed = False

    def handleError(self, record: logging.LogRecord) -> None:
        if not self._failed:
            self._failed = True  # before the warning, which is also sent to this handler
            log.warning("%s cannot be written (%s); the run continues", self.baseFilename, sys.exception())


def on_terminal() -> bool:
    """Whether standard output is a terminal."""
    return sys.stdout.isatty()


def duration(seconds: float) -> str:
    """``75`` → ``1:15``, ``3700`` → ``1:01:40``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def write_to_log_only(line: str) -> None:
    """Write an error to the log file of the run only."""
    for handler in log.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(log.makeRecord(log.name, logging.ERROR, "", 0, "error: %s", (line,), None))
