"""Kills of a run at random moments: it is resumed each time, and its end compared with that of a run left alone.

    python tests/faults.py --kills 20 --devices 1         # SIGKILL at moments drawn at random (make test-faults)

The run has all that could remember something: DataLoader workers, random augmentation, mixup, dropout, stochastic
depth, an average of the weights, momentum, and checkpoints in the middle of its epochs. Equal means bit for bit: the
whole last checkpoint, the best one, metrics.csv with the loss of every step, and the predictions.
"""

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

SETTINGS = [
    "model=timm",
    "model.name=test_resnet",
    "head=noah",
    "data=imagefolder",
    "data.image_size=32",
    "data.num_workers=2",
    "recipe=deit",
    "recipe.batch_size=8",
    "recipe.epochs=3",
    "recipe.schedule.warmup_epochs=1",
    "recipe.drop_path=0.1",
    "recipe.ema=0.9",
    "recipe.augment.repeats=1",
    "trainer.log_every_n_steps=1",
    "trainer.num_sanity_val_steps=0",
    "checkpoint.every_n_steps=3",
]
# Of wall-clock time, so never the same twice.
CLOCK = {"train_seconds", "run_seconds", "images_per_second", "epoch_seconds", "startup"}
# Where the run lies, and the latest score that Lightning has seen, which it does not restore and does not need.
ELSEWHERE = {"dirpath", "best_model_path", "kth_best_model_path", "best_k_models", "last_model_path", "current_score"}
IMAGES = 400
STEPS = 3 * IMAGES // 8


def photographs(root: Path) -> Path:
    """root/{train,val}/{a,b}/*.jpg: noise of two kinds."""
    rng = np.random.default_rng(0)
    for split, count in (("train", IMAGES), ("val", 20)):
        for i in range(count):
            pixels = rng.integers(0, 256, (40, 48, 3), np.uint8)
            folder = root / split / "ab"[i % 2]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels // (1 + i % 2)).save(folder / f"{i}.jpg", quality=90)
    return root


def command(data: Path, run: Path, devices: int) -> list[str]:
    """Of the first attempt."""
    words = [*SETTINGS, f"data.root={data}", f"hydra.run.dir={run}"]
    if devices > 1:
        words += ["trainer=ddp", "trainer.accelerator=cpu", f"trainer.devices={devices}"]
    return ["train", *words]


def start(words: list[str], log: Path) -> subprocess.Popen[bytes]:
    """A process group of its own, so that all of a run is killed."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    program = [sys.executable, "-m", "noah_lightning", *words]
    with log.open("ab") as out:
        return subprocess.Popen(program, stdout=out, stderr=out, env=environment, start_new_session=True)


class Process(Protocol):
    """What is used of ``subprocess.Popen``."""

    @property
    def pid(self) -> int: ...
    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, number: signal.Signals, /) -> None: ...


class Moment(NamedTuple):
    """When to send a signal: so many seconds after so many steps are known to be done."""

    steps: int
    seconds: float = 0.0


def draw_moments(count: int, draw: random.Random, start: float) -> list[Moment]:
    """At random: a fifth while the run starts or loads its checkpoint, which takes ``start`` seconds, the others
    anywhere in or between its steps, or while it validates or saves.
    """
    steps = sorted(draw.randrange(1, STEPS - 30) for _ in range(count))
    return [
        Moment(0, draw.uniform(0.1, 1) * start) if i % 5 == 0 else Moment(step, draw.uniform(0, 0.2))
        for i, step in enumerate(steps)
    ]


def run_with_kills(
    data: Path,
    run: Path,
    devices: int,
    moments: Sequence[Moment],
    sent: signal.Signals,
    words: Sequence[str] = (),
    start: Callable[[list[str], Path], Process] = start,
) -> list[int]:
    """Train, and at each moment send a signal and resume; returns the exit statuses."""
    log = run.parent / f"{run.name}.log"
    statuses = []
    for moment in [*moments, None]:
        resume = (run / "config.yaml").exists()
        process = start(["resume", str(run)] if resume else [*command(data, run, devices), *words], log)
        if moment and not ended_before(process, run, moment):
            if sent == signal.SIGKILL:
                os.killpg(process.pid, sent)
            else:
                process.send_signal(sent)
        statuses.append(process.wait(timeout=600))
        if (run / "results.json").exists():
            return statuses
    raise AssertionError(f"the run did not finish:\n{log.read_text()[-3000:]}")


def ended_before(process: Process, run: Path, moment: Moment) -> bool:
    """Wait for the moment, or for the end of the process if that comes first."""
    while steps_saved(run) < moment.steps:
        if process.poll() is not None:
            return True
        time.sleep(0.01)
    with suppress(subprocess.TimeoutExpired):
        process.wait(moment.seconds)
    return process.poll() is not None


def steps_saved(run: Path) -> int:
    """By the latest checkpoint, or by the lines of the log of this start."""
    saved = [int(path.stem.removeprefix("step-")) for path in run.glob("checkpoints/step-*.ckpt")]
    log = run / "train.log"
    lines = re.findall(r"epoch (\d+)/\d+  batch (\d+)/(\d+)", log.read_text()) if log.exists() else []
    logged = [(int(epoch) - 1) * int(batches) + int(batch) for epoch, batch, batches in lines[-1:]]
    return max([*saved, *logged], default=0)


def differences(left: Path, right: Path) -> list[str]:
    """Differences between two finished runs, except in what depends on the clock."""
    found = []
    names = [{path.name for path in run.glob("checkpoints/*")} for run in (left, right)]
    if names[0] != names[1]:
        return [f"files: {names[0] ^ names[1]}"]
    for name in sorted(names[0]):
        a, b = (dict(flat(torch.load(run / "checkpoints" / name, weights_only=True))) for run in (left, right))
        for key in sorted(a.keys() | b.keys()):
            if key not in a or key not in b:
                found.append(f"{name}: only one has {key}")
            elif not same(a[key], b[key]):
                found.append(f"{name}: {key}: {a[key]} != {b[key]}"[:300])
    if (left / "metrics.csv").read_bytes() != (right / "metrics.csv").read_bytes():
        found.append("metrics.csv")
    a, b = (np.load(run / "predictions.npz") for run in (left, right))
    found += [f"predictions.npz: {key}" for key in a if not np.array_equal(a[key], b[key])]
    a, b = (json.loads((run / "results.json").read_text()) for run in (left, right))
    found += [f"results.json: {key}" for key in a if key not in CLOCK and a[key] != b[key]]
    return found


def flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """All leaves of nested containers but the clock's, and the paths of the runs."""
    if isinstance(value, dict):
        for key, part in value.items():
            if key not in CLOCK | ELSEWHERE:
                yield from flat(part, f"{name}/{key}")
    elif isinstance(value, list | tuple):
        for number, part in enumerate(value):
            yield from flat(part, f"{name}/{number}")
    else:
        yield name, value


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    return bool(a == b)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--signal", default="SIGKILL", choices=["SIGKILL", "SIGTERM", "SIGUSR1", "SIGINT"])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="noah_faults_") as name:
        folder = Path(name)
        data = photographs(folder / "data")
        begun = time.monotonic()
        run_with_kills(data, folder / "alone", arguments.devices, [], signal.SIGKILL)
        whole = time.monotonic() - begun
        moments = draw_moments(arguments.kills, random.Random(arguments.seed), start=whole / 2)
        statuses = run_with_kills(
            data, folder / "killed", arguments.devices, moments, signal.Signals[arguments.signal]
        )
        found = differences(folder / "alone", folder / "killed")
        sent = len(statuses) - 1
        print(f"{sent} times {arguments.signal}, {arguments.devices} processes; statuses {statuses}")
        if sent < arguments.kills:
            found.append(f"the run had finished before the other {arguments.kills - sent}")
        print("\n".join(found) if found else "bitwise the same as the run that was left alone")
        return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
