"""What is fuzzed: each takes bytes that anybody may have written, and may raise a UserError and nothing else."""

import atexit
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from noah_lightning.callbacks.checkpoints import read_checkpoint
from noah_lightning.config.results import Results
from noah_lightning.data.image import Picture
from noah_lightning.data.pack_format import FACTS, read_facts, read_index
from noah_lightning.errors import UserError
from noah_lightning.models.official_checkpoints import read_official
from noah_lightning.run_dir import RunDir

FOLDER = Path(tempfile.mkdtemp(prefix="noah-fuzz-"))
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)
RESULTS = Results(
    parameters=1,
    epochs=1,
    best_epoch=1,
    correct=0,
    correct_top5=1,
    images=1,
    train_seconds=1.0,
    images_per_second=1.0,
)


def config(data: bytes) -> None:
    """A run's config.yaml, as evaluate, resume and compare read it."""
    (FOLDER / "config.yaml").write_bytes(data)
    with suppress(UserError):
        RunDir(FOLDER).config(())
    with suppress(UserError):
        assert RunDir(FOLDER).settings


def checkpoint(data: bytes) -> None:
    """A checkpoint, as evaluate, resume and convert read it."""
    path = FOLDER / "file.ckpt"
    path.write_bytes(data)
    for read in (read_checkpoint, read_official):
        with suppress(UserError):
            read(path)


def shard(data: bytes) -> None:
    """The facts, the index or an image of a pack: what the first byte says."""
    kind, data = data[:1], data[1:]
    if kind < b"\x55":
        (FOLDER / FACTS).write_bytes(data)
        with suppress(UserError):
            read_facts(FOLDER)
    elif kind < b"\xaa":
        (FOLDER / FACTS).write_text(
            '{"format": "noah_lightning pack", "version": 1, "classes": ["a"], "splits": {"val": {"images": 1}}}'
        )
        (FOLDER / "val.npz").write_bytes(data)
        with suppress(UserError):
            read_index(FOLDER, "val")
    else:
        with suppress(UserError):
            picture = Picture(data, "image")
            rows = min(picture.height, 1 + len(data) % 16)
            assert picture.pixels(rows).shape == (3, rows, picture.width)


def results(data: bytes) -> None:
    """What compare reads of a run beside its configuration."""
    run = RunDir(FOLDER)
    run.write_results(RESULTS)
    for name in ("metrics.csv", "predictions.npz", "train.log"):
        (FOLDER / name).write_bytes(data)
    with suppress(UserError):
        run.predictions()
    run.curve("val/top1")
    (FOLDER / "results.json").write_bytes(data)
    outcome = run.outcome
    assert run.reason if outcome is None else np.isfinite(outcome.top1)
    (FOLDER / "results.json").unlink()
    assert run.reason


READERS: dict[str, Callable[[bytes], None]] = {
    "config": config,
    "checkpoint": checkpoint,
    "shard": shard,
    "results": results,
}
