"""One run directory, one run: whoever comes second is refused."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from noah_lightning.errors import ConfigError, one_line
from noah_lightning.run_files import LOG, RESULTS

try:
    import fcntl
except ImportError:  # Windows: nothing keeps the second one out there
    fcntl = None  # type: ignore[assignment]


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Keep the run directory for this process. The system lets go of it when the process ends, however it ends.

    Raises:
        ConfigError: another process is at it, or the directory cannot be written.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        handle = os.open(run_dir / LOG, os.O_RDWR | os.O_CREAT, 0o644)  # any file would do
    except OSError as error:
        raise ConfigError(f"{run_dir} cannot be written ({one_line(error)}); give another hydra.run.dir=…") from error
    try:
        if fcntl:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(f"{run_dir} is in use: another process is training there") from None
        yield
    finally:
        os.close(handle)


def check_unfinished(run_dir: Path) -> None:
    """Refuse to go on with a run that has finished: it would begin anew, over its results.

    Raises:
        ConfigError: it has.
    """
    if (run_dir / RESULTS).is_file():
        raise ConfigError(f"{run_dir} has finished; noah evaluate {run_dir} repeats its validation")
