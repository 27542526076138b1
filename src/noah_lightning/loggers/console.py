"""Log lines: to the console, into the run's log, and what of the libraries' is left out."""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rich import get_console
from rich.logging import RichHandler

from noah_lightning.distributed.environment import rank

log = logging.getLogger("noah_lightning")

# Warnings of the libraries that ask nothing of the user.
_CHATTER = (
    ".*does not have many workers.*",  # the number of workers suits the machine, or the data is in memory
    ".*smaller than the logging interval.*",  # a short epoch; its totals are logged all the same
    ".*`srun` command is available.*",  # a machine of a cluster may train without the cluster
    ".*sync_dist=True.*",  # the task logs what it has summed over the processes itself
    ".*in eval mode at the start of training.*",  # the average of the weights, which is never trained
    ".*ended before the epoch ended and your dataloader is not resumable.*",  # its batches are those that are left
    "Checkpoint directory .* exists and is not empty.*",  # so it does where a run goes on
    ".*isinstance\\(treespec, LeafSpec\\).* is deprecated.*",  # Lightning's own use of torch
)


def start_logging() -> None:
    """Log lines to standard output, and the libraries' chatter only from warnings on.

    Of several processes only the first one says anything.
    """
    log.setLevel(logging.INFO)
    log.propagate = False
    log.handlers.clear()
    if rank() > 0:
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        return
    if on_terminal():
        handler: logging.Handler = RichHandler(
            console=get_console(), show_time=False, show_level=False, show_path=False
        )
    else:
        handler = logging.StreamHandler(sys.stdout)
    log.addHandler(handler)
    silence_libraries()


def silence_libraries() -> None:
    """Hear of the libraries from warnings on, and not of what asks nothing of the user."""
    for library in ("lightning.pytorch", "lightning.fabric", "timm"):
        logging.getLogger(library).setLevel(logging.WARNING)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it warns at each of ten retries
    for chatter in _CHATTER:
        warnings.filterwarnings("ignore", message=chatter)


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Write all log lines to ``path`` too."""
    handler = _LogFile(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        with suppress(OSError):  # told already
            handler.close()


class _LogFile(logging.FileHandler):
    """Python's would print a traceback for each line that a full disk does not take."""

    _failed = False

    def handleError(self, record: logging.LogRecord) -> None:
        if not self._failed:
            self._failed = True  # before the line that says so comes here, too
            log.warning("%s cannot be written (%s); the run goes on", self.baseFilename, sys.exception())


def on_terminal() -> bool:
    """Whether there is a terminal to draw on; elsewhere plain lines are written."""
    return sys.stdout.isatty()


def duration(seconds: float) -> str:
    """``75`` → ``1:15``, ``3700`` → ``1:01:40``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def write_to_log_only(line: str) -> None:
    """An error, into the run's log."""
    for handler in log.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(log.makeRecord(log.name, logging.ERROR, "", 0, "error: %s", (line,), None))
