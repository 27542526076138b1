"""What is drawn for a batch depends on the seed, the process, the epoch and the batch, and on nothing before it."""

import random
import re
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from noah_lightning.data import loader as batches
from noah_lightning.data.loader import (
    AUGMENTATION,
    STEP,
    DrawnImages,
    EpochBatches,
    TrainLoader,
    seed_training_step,
)
from noah_lightning.data.samplers import EpochRepeat, EpochShuffle, derived_seed
from noah_lightning.errors import DataError


@pytest.fixture(scope="module", autouse=True)
def _impatient() -> Iterator[None]:
    """torch waits 5 s for a loading process that met an error."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.2)
        yield


class Draws:
    """Images that are nothing but draws from the three generators that augmentation uses."""

    def __len__(self) -> int:
        return 50

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.tensor([index, random.random(), np.random.rand(), torch.rand(())]), index


def epochs(workers: int = 0, first: int = 0, epoch: int = 0, rank: int = 0, repeats: int = 1) -> list[list[Tensor]]:
    """Two epochs of batches of 8."""
    place = {"epoch": epoch, "rank": rank, "world_size": rank + 1}
    order = EpochShuffle(50, 3, **place) if repeats == 1 else EpochRepeat(50, 3, repeats, **place)
    loader = TrainLoader(
        DrawnImages(Draws()),
        EpochBatches(order, 8, True, first),
        num_workers=workers,
        persistent_workers=workers > 0,
        generator=torch.Generator(),  # else the loader itself would draw from the global one
    )
    return [[images for images, _ in loader] for _ in range(2)]


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    return len(left) == len(right) and all(map(torch.equal, left, right))


@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_workers_makes_no_difference(workers: int) -> None:
    for here, there in zip(epochs(0), epochs(workers), strict=True):
        assert same(here, there)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("repeats", [1, 3])
def test_going_on_in_the_middle_of_an_epoch(workers: int, repeats: int) -> None:
    whole = epochs(repeats=repeats)
    rest = epochs(workers, first=4, repeats=repeats)
    assert same(rest[0], whole[0][4:])
    assert same(rest[1], whole[1])
    (second, _), (_, expected) = epochs(epoch=1, repeats=repeats), whole
    assert same(second, expected)


def test_all_draws_differ() -> None:
    first, second = epochs()
    drawn = [*first, *second, *epochs(rank=1)[0]]
    for column in (1, 2, 3):
        draws = torch.cat([batch[:, column] for batch in drawn])
        assert len(draws.unique()) == len(draws)


def test_loading_in_line_leaves_the_generators_alone() -> None:
    seed_training_step(1, 0, 0, 0)
    expected = random.random(), np.random.rand(), torch.rand(3)
    seed_training_step(1, 0, 0, 0)
    epochs()
    found = random.random(), np.random.rand(), torch.rand(3)
    assert found[:2] == expected[:2]
    assert torch.equal(found[2], expected[2])


def test_a_whole_epoch_has_its_length_wherever_it_begins() -> None:
    epoch = EpochBatches(EpochShuffle(50, 0), 8, False, first=5)
    assert len(epoch) == 7
    assert [len(images) for _, images in epoch] == [8, 2]
    assert [len(images) for _, images in epoch] == [8] * 6 + [2]


def test_seeds_are_told_apart_by_everything() -> None:
    base = (0, STEP, 0, 0, 0)  # seed, stream, rank, epoch, batch
    seeds = {derived_seed(*base), derived_seed(0, AUGMENTATION, 0, 0, 0)}
    for place in (0, 2, 3, 4):
        for value in range(1, 20):
            changed = list(base)
            changed[place] = value
            seeds.add(derived_seed(*changed))
    assert len(seeds) == 2 + 4 * 19
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_draws_of_neighbouring_batches_are_unrelated() -> None:
    draws = []
    for batch in range(2000):
        seed_training_step(0, 0, 0, batch)
        draws.append((random.random(), np.random.rand(), torch.rand(()).item()))
    for values in zip(*draws, strict=True):
        centred = np.array(values) - 0.5
        assert abs(centred.mean()) < 4 * (1 / 12 / 2000) ** 0.5
        assert abs(np.mean([a * b for a, b in pairwise(centred)])) < 4 / 12 / 2000**0.5


# --- images that cannot be read


class Broken(Draws):
    """Reading fails before anything is drawn."""

    def __init__(self, *numbers: int) -> None:
        self.numbers = numbers

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index in self.numbers:
            raise DataError(f"{index}.jpg cannot be read")
        return super().__getitem__(index)


def loader(images: Draws, most: int, workers: int = 0) -> TrainLoader:
    return TrainLoader(
        DrawnImages(images, most),
        EpochBatches(EpochShuffle(50, 3), 10, True),
        num_workers=workers,
        persistent_workers=workers > 0,
        generator=torch.Generator(),
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_the_next_image_takes_the_place_and_the_draw_of_one_that_cannot_be_read(
    workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(batches.log, "warning", lambda text, *values: told.append(text % values))
    whole, broken = loader(Draws(), 0), loader(Broken(7, 8, 49), 3, workers)
    for _ in range(2):
        for (there, _), (here, labels) in zip(whole, broken, strict=True):
            expected = there[:, 0].clone()
            for number, next_one in ((7, 9), (8, 9), (49, 0)):
                expected[expected == number] = next_one
            assert torch.equal(here[:, 0], expected)
            assert torch.equal(labels, expected.long())
            assert torch.equal(here[:, 1:], there[:, 1:])
    lines = [f"{number}.jpg cannot be read; it is replaced by the next one" for number in (49, 7, 8)]
    assert sorted(told) == lines  # once each, in two epochs


@pytest.mark.parametrize("workers", [0, 1])
def test_more_than_may_be_unreadable_end_the_run(workers: int) -> None:
    """Two in different batches, and a batch that alone has too many."""
    for numbers in ((7, 30), tuple(range(20))):
        with pytest.raises(DataError) as caught:
            list(loader(Broken(*numbers), 1, workers))
        assert re.fullmatch(
            r"2 unreadable training images, and data\.max_unreadable=1; noah check-data lists all of them; "
            r"the last one: \d+\.jpg cannot be read",
            str(caught.value),
        )


def test_by_default_the_first_one_raises_its_own_error() -> None:
    with pytest.raises(DataError, match=r"^7\.jpg cannot be read$"):
        list(loader(Broken(7), 0))
