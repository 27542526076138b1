"""The folder of a pack while it is being written: whose it is, and when it is finished."""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from noah_lightning.data.pack_format import FACTS, FORMAT, UNFINISHED, VERSION, Index
from noah_lightning.errors import DataError, name_first, one_line
from noah_lightning.loggers.console import log

_OURS = re.compile(rf"(train|val)(-\d{{6}}\.tar|\.npz)|{re.escape(FACTS)}\.part|{UNFINISHED}")


@contextmanager
def claimed(out: Path) -> Iterator[None]:
    """``out`` as a folder for one pack, which is unfinished until :func:`finish`.

    What an attempt left that was killed is removed first. If this one fails, it removes what it has written.

    Raises:
        DataError: it holds something else, another process is packing into it, or it cannot be written.
    """
    try:
        _require_free(out)
        made, begun = not out.exists(), (out / UNFINISHED).exists()
        out.mkdir(parents=True, exist_ok=True)
        with FileLock(out / UNFINISHED, blocking=False):
            _require_free(out)  # another process may just have finished
            if begun:
                log.info("%s: packing was broken off there; starting over", out)
                _remove(out, but=UNFINISHED)
            try:
                yield
            except BaseException:
                _remove(out)
                if made:
                    out.rmdir()
                raise
            (out / UNFINISHED).unlink()
    except Timeout:
        raise DataError(f"another process is packing into {out}: wait for it, or give another folder") from None
    except OSError as error:
        raise DataError(f"{out} cannot be written: {error.strerror or one_line(error)}") from error


def _require_free(out: Path) -> None:
    """Raises DataError if ``out`` holds anything but what an unfinished pack leaves."""
    names = sorted(os.listdir(out)) if out.exists() else []
    if FACTS in names:
        raise DataError(f"{out} holds a finished pack already, which stays as it is: give another folder")
    others = [name for name in names if UNFINISHED not in names or not _OURS.fullmatch(name)]
    if others:
        raise DataError(f"{out} is not empty ({name_first(others)}): give a new folder")


def _remove(out: Path, but: str = "") -> None:
    """All files of a pack, the mark last: without it they would be a stranger's."""
    ours = [name for name in os.listdir(out) if _OURS.fullmatch(name) and name != but]
    for name in sorted(ours, key=UNFINISHED.__eq__):
        (out / name).unlink(missing_ok=True)


def finish(out: Path, classes: Sequence[str], indices: Mapping[str, Index]) -> None:
    """Writes where the images lie, and last of all pack.json, at once: from then on the pack is finished."""
    splits = {}
    for split, index in indices.items():
        with open(out / f"{split}.npz", "xb") as file:
            index.write(file)
            _to_disk(file)
        splits[split] = {"images": len(index), "shards": len(index.ends), "bytes": int(index.shard_bytes.sum())}
    facts = {"format": FORMAT, "version": VERSION, "splits": splits, "classes": list(classes)}
    part = out / f"{FACTS}.part"
    with open(part, "x", encoding="utf-8") as text:
        json.dump(facts, text, indent=1)
        _to_disk(text)
    os.replace(part, out / FACTS)


def _to_disk(file: IO[Any]) -> None:
    file.flush()
    os.fsync(file.fileno())
