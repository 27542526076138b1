"""Batches of more images than there are, and images smaller than a position of the feature map."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from conftest import Answer
from noah_lightning.callbacks.batch_split import BatchSplit, size_warnings
from noah_lightning.data.loader import EpochBatches
from noah_lightning.data.samplers import EpochShuffle

Noah = Callable[..., Answer]


def train(noah: Noah, root: Path, *words: str) -> Answer:
    return noah(
        *("train", "data=imagefolder", f"data.root={root}", "data.image_size=32", "data.num_workers=0"),
        *("trainer.max_epochs=1", "model=resnet18_quarter", "head=gap", "hydra.run.dir=run", *words),
    )


def test_a_batch_of_more_images_than_there_are_is_a_warning(noah: Noah, jpeg_tree: Path) -> None:
    answer = train(noah, jpeg_tree, "recipe.batch_size=1000")
    assert answer.status == 0, answer.err
    line = (
        "recipe.batch_size=1000 is more than the 16 training images: each step has 16 while the learning rate is "
        "that for 1000; choose at most 16\n"
    )
    assert answer.out.count(line) == 1
    assert line in Path("run/train.log").read_text()


def test_a_batch_of_all_images_needs_no_warning(noah: Noah, jpeg_tree: Path) -> None:
    answer = train(noah, jpeg_tree, "recipe.batch_size=16")
    assert answer.status == 0, answer.err
    assert "choose" not in answer.out


@pytest.mark.parametrize("images", [1, 7, 16, 100, 143])
@pytest.mark.parametrize("split", [(1, 1000, 1), (2, 64, 2), (3, 10, 5), (1, 32, 8), (4, 40, 1), (2, 7, 3)])
def test_the_true_batch_is_that_of_the_first_step(images: int, split: tuple[int, int, int]) -> None:
    processes, batch, passes = split
    seen: set[int] = set()
    for rank in range(processes):
        order = EpochShuffle(images, seed=0, epoch=0, rank=rank, world_size=processes)
        batches = EpochBatches(order, batch, drop_last=len(order) >= batch)
        for _, numbers in islice(batches, passes):
            seen |= set(numbers)
    task: Any = SimpleNamespace(model=nn.Identity(), optimizer_settings=SimpleNamespace(lr_batch=None))
    data: Any = SimpleNamespace(train_dataset=range(images), image_size=32)
    config: Any = None
    found = size_warnings(config, task, data, BatchSplit(*split))
    asked = processes * batch * passes
    if asked <= images:
        assert found == []
    else:
        assert found == [
            f"recipe.batch_size={asked} is more than the {images} training images: each step has {len(seen)}; choose "
            f"at most {images}"
        ]


def test_images_smaller_than_a_position_are_a_warning(noah: Noah, jpeg_tree: Path) -> None:
    answer = train(noah, jpeg_tree, "data.image_size=7", "recipe.batch_size=8", "model=resnet18")
    assert answer.status == 0, answer.err
    assert "data.image_size=7 is less than the 32 pixels that a position of the feature map of resnet18" in answer.out


def test_images_that_a_model_cannot_take_are_refused(noah: Noah, jpeg_tree: Path) -> None:
    answer = train(noah, jpeg_tree, "data.image_size=7", "recipe.batch_size=8", "model=deit_tiny")
    assert (answer.status, answer.err.count("\n")) == (2, 1)
    assert answer.err.startswith("noah: data.image_size=7 is too small for deit_tiny_patch16_224: ")
    assert not Path("run").exists() or not any(Path("run").glob("config.yaml"))
