"""What is drawn for a batch depends on the seed, the process, the epoch and the batch, and on nothing before it."""

import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from noah_lightning.data.batches import DrawnImages, EpochBatches
from noah_lightning.data.randomness import Purpose, batch_seed, draw_from, drawing_from
from noah_lightning.data.shuffle import EpochRepeat, EpochShuffle


class Draws:
    """Images that are nothing but draws from the three generators that augmentation uses."""

    def __len__(self) -> int:
        return 50

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.tensor([index, random.random(), np.random.rand(), torch.rand(())]), index


def epochs(workers: int = 0, first: int = 0, epoch: int = 0, rank: int = 0, repeats: int = 1) -> list[list[Tensor]]:
    """Two epochs of batches of 8."""
    order = EpochShuffle(50, 3, epoch) if repeats == 1 else EpochRepeat(50, 3, repeats, epoch)
    batches = EpochBatches(order, 8, True, seed=3, rank=rank, first=first)
    loader = DataLoader(
        DrawnImages(Draws()),
        batch_sampler=batches,
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
    batches = [*first, *second, *epochs(rank=1)[0]]
    for column in (1, 2, 3):
        draws = torch.cat([batch[:, column] for batch in batches])
        assert len(draws.unique()) == len(draws)


def test_loading_in_line_leaves_the_generators_alone() -> None:
    draw_from(1)
    expected = random.random(), np.random.rand(), torch.rand(3)
    draw_from(1)
    epochs()
    found = random.random(), np.random.rand(), torch.rand(3)
    assert found[:2] == expected[:2]
    assert torch.equal(found[2], expected[2])


def test_a_whole_epoch_has_its_length_wherever_it_begins() -> None:
    batches = EpochBatches(EpochShuffle(50, 0), 8, False, seed=0, rank=0, first=5)
    assert len(batches) == 7
    assert [len(images) for _, images in batches] == [8, 2]
    assert [len(images) for _, images in batches] == [8] * 6 + [2]


def test_seeds_are_told_apart_by_everything() -> None:
    base = (Purpose.STEP, 0, 0, 0, 0)
    seeds = {batch_seed(*base), batch_seed(Purpose.AUGMENTATION, *base[1:])}
    for place in range(1, 5):
        for value in range(1, 20):
            changed = list(base)
            changed[place] = value
            seeds.add(batch_seed(*changed))
    assert len(seeds) == 2 + 4 * 19
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_draws_of_neighbouring_batches_are_unrelated() -> None:
    draws = []
    for batch in range(2000):
        with drawing_from(batch_seed(Purpose.STEP, 0, 0, 0, batch)):
            draws.append((random.random(), np.random.rand(), torch.rand(()).item()))
    for values in zip(*draws, strict=True):
        centred = np.array(values) - 0.5
        assert abs(centred.mean()) < 4 * (1 / 12 / 2000) ** 0.5
        assert abs(np.mean([a * b for a, b in pairwise(centred)])) < 4 / 12 / 2000**0.5
