"""Which runs lie in the folders that were named."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from noah_lightning.compare.read import CONFIG, Run, read_run
from noah_lightning.errors import ConfigError, one_line

DEPTH = 3  # runs/DATE/TIME_sweep/NUMBER lies three below runs


def find_runs(folders: Sequence[Path]) -> list[Run]:
    """Every run in ``folders``, each once; a folder is a run directory, or holds runs at most three levels down.

    Raises:
        ConfigError: no folder, one that is none, is unreadable or without a run, or a named run whose configuration
            is not ours.
    """
    if not folders:
        raise ConfigError("there is nothing to compare; name at least one run directory")
    found: dict[Path, Run] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"{folder} is no folder")
        runs = [read_run(folder)] if (folder / CONFIG).is_file() else list(_inside(folder, DEPTH))
        if not runs:
            raise ConfigError(f"{folder} holds no run: there is no run's {CONFIG} in it, nor {DEPTH} levels below")
        for run in runs:
            found.setdefault(run.path.resolve(), run)
    return list(found.values())


def _inside(folder: Path, depth: int) -> Iterator[Run]:
    """Runs below ``folder``; what lies inside a run (a logger's own files) is none, and strangers are passed over."""
    if depth == 0:
        return
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise ConfigError(f"{folder} cannot be looked through: {one_line(error)}") from error
    for path in paths:
        if path.name.startswith(".") or not path.is_dir():
            continue
        if (path / CONFIG).is_file():
            try:
                yield read_run(path)
            except ConfigError:  # some other program's config.yaml
                continue
        else:
            yield from _inside(path, depth - 1)
