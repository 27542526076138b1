"""Where a run goes on in its epoch when its batch is split otherwise: images, counted."""

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from noah_lightning.callbacks.batch_split import BatchSplit, KeepPlace, not_exact
from noah_lightning.data.loader import EpochBatches
from noah_lightning.data.samplers import EpochShuffle

IMAGES = 240


def batches(split: BatchSplit, rank: int, first: int = 0) -> EpochBatches:
    order = EpochShuffle(IMAGES, 0, 3, rank, split.processes)
    return EpochBatches(order, split.images, drop_last=True, seed=0, rank=rank, first=first)


def steps(split: BatchSplit, first: int = 0) -> list[Counter[int]]:
    """The images of each step of all processes, from a batch on."""
    passes = zip(*(batches(split, rank, first) for rank in range(split.processes)), strict=True)
    seen = [Counter(number for _, numbers in one for number in numbers) for one in passes]
    return [sum(seen[i : i + split.passes], Counter()) for i in range(0, len(seen), split.passes)]


def place(
    begun: BatchSplit, now: BatchSplit, done: int, last: bool = False, limit: int | None = None
) -> dict[str, Any]:
    """Lightning's progress after loading, of a run that had done so many batches of its fourth epoch."""
    counts = dict.fromkeys(("ready", "started", "processed"), done) | {"completed": done - 1}
    total = {name: 1000 + value for name, value in counts.items()}
    progress = {"current": counts, "total": total, "is_last_batch": last}
    checkpoint = {"loops": {"fit_loop": {"epoch_loop.batch_progress": progress}}}
    trainer: Any = SimpleNamespace(
        datamodule=SimpleNamespace(train_batches=lambda epoch, rank: batches(now, rank)), limit_train_batches=limit
    )
    nothing: Any = None
    KeepPlace(begun).on_save_checkpoint(trainer, nothing, checkpoint)
    KeepPlace(now).on_load_checkpoint(trainer, nothing, checkpoint)
    return progress


ONE = BatchSplit(1, 24, 1)


@pytest.mark.parametrize("now", [BatchSplit(2, 12, 1), BatchSplit(3, 8, 1), BatchSplit(1, 8, 3), BatchSplit(2, 6, 2)])
@pytest.mark.parametrize("done", [1, 4, 9])
def test_the_same_batch_split_otherwise_has_the_same_steps(now: BatchSplit, done: int) -> None:
    there, back = place(ONE, now, done), place(now, ONE, done * now.passes)
    first = there["current"]["processed"]
    assert first == done * now.passes
    assert steps(now, first) == steps(ONE, done)
    assert back["current"]["processed"] == done
    assert there["current"]["completed"] == first - 1  # saved before Lightning counted it
    assert {name: value - 1000 for name, value in there["total"].items()} == there["current"]


@pytest.mark.parametrize(
    "now", [BatchSplit(1, 40, 1), BatchSplit(2, 40, 1), BatchSplit(1, 10, 1), BatchSplit(4, 5, 4)]
)
@pytest.mark.parametrize("done", [1, 4, 9])
def test_another_batch_sees_all_images_and_few_of_them_twice(now: BatchSplit, done: int) -> None:
    first = place(ONE, now, done)["current"]["processed"]
    assert first % now.passes == 0  # gradients are never cut in two
    seen = sum(steps(ONE)[:done], Counter()) + sum(steps(now, first), Counter())
    assert set(seen) == set(range(IMAGES))
    assert seen.total() - IMAGES < now.in_step


def test_something_is_left_to_end_the_epoch_with() -> None:
    assert place(ONE, BatchSplit(1, 80, 1), 9, limit=2)["current"]["processed"] == 1


def test_at_the_end_of_an_epoch_there_is_no_place_to_find() -> None:
    assert place(ONE, BatchSplit(1, 10, 1), 10, last=True)["current"]["processed"] == 10


@pytest.mark.parametrize(
    ("now", "shards", "told"),
    [
        (BatchSplit(2, 12, 1), False, "2 × 12 images instead of 24 images: a step still has the same images; aug"),
        (BatchSplit(2, 12, 1), True, "2 × 12 images instead of 24 images: this epoch shows some images twice"),
        (BatchSplit(1, 12, 2), True, "12 images × 2 passes instead of 24 images: a step still has the same images"),
        (BatchSplit(1, 12, 1), False, "12 images instead of 24 images: a step has 12 images instead of 24, so"),
    ],
)
def test_what_is_told(now: BatchSplit, shards: bool, told: str) -> None:
    line = not_exact(ONE, now, shards)
    assert line.startswith(told)
    assert "dropout draw anew" in line
