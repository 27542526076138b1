"""Batches of one image: what batch norm cannot train on is reported before the run directory is made."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from conftest import TINY, Answer
from noah_lightning.callbacks.batch_split import BatchSplit, check_batch
from noah_lightning.config.compose import compose_config
from noah_lightning.data import create_data
from noah_lightning.errors import ConfigError
from noah_lightning.models.classifier import build_model
from noah_lightning.train import make_task

# timm's smallest ResNet has a stride of 32, so its last layers have one position at 32 pixels, and four at 64.
ONE = [*TINY, "trainer.max_epochs=1", "data.image_size=32", "data.digit_size=16", "data.train_images=8"]
SAYS = "batch norm cannot train on 1 value per channel, which a layer of the model has with "


@pytest.mark.parametrize(
    ("words", "split", "advice"),
    [
        (["recipe.batch_size=1", "head=gap"], "1 image", "a larger recipe.batch_size"),
        (
            ["recipe.batch_size=4", "trainer.accumulate_grad_batches=4"],
            "1 image × 4 passes",
            "a smaller trainer.accumulate_grad_batches",
        ),
        (["data.train_images=1"], "1 image", "more training images"),
    ],
)
def test_one_value_per_channel_is_refused(
    noah: Callable[..., Answer], words: list[str], split: str, advice: str
) -> None:
    answer = noah("train", *ONE, *words, "hydra.run.dir=run")
    line = f"noah: {SAYS}{split} at data.image_size=32; use {advice} or a larger data.image_size\n"
    assert (answer.status, answer.err) == (2, line)
    assert not Path("run").exists()


def test_each_process_needs_two_values_unless_they_are_synchronized() -> None:
    config = compose_config([*ONE, "head=noah"])
    synchronized = config.replace("trainer", sync_batchnorm=True)
    data, task = create_data(**config.data.arguments()), make_task(config, build_model(config), 2)
    data.setup("fit")
    before = {key: value.clone() for key, value in task.model.state_dict().items()}
    random = torch.get_rng_state()
    for settings, split, advice in (
        (config, BatchSplit(2, 1, 1), "a larger recipe.batch_size"),
        (config, BatchSplit(8, 2, 1), "more training images"),  # of 8
        (synchronized, BatchSplit(1, 1, 1), "a larger recipe.batch_size"),
    ):
        with pytest.raises(ConfigError, match=f"^{SAYS}.*1 image at data.image_size=32; use {advice} or"):
            check_batch(settings, data, task, split)
    check_batch(config, data, task, BatchSplit(4, 2, 1))
    check_batch(synchronized, data, task, BatchSplit(2, 1, 1))
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[key]) for key, value in task.model.state_dict().items())


def test_several_values_of_one_image_are_trained_on(noah: Callable[..., Answer]) -> None:
    words = ["data.image_size=64", "recipe.batch_size=1", "head=noah", "hydra.run.dir=run"]
    assert noah("train", *ONE, *words).status == 0
    weights = torch.load("run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert {int(value) for key, value in weights.items() if key.endswith("num_batches_tracked")} == {8}


def test_validation_takes_one_image(noah: Callable[..., Answer]) -> None:
    words = ["recipe.batch_size=4", "data.val_images=5", "head=noah", "hydra.run.dir=run"]
    assert noah("train", *ONE, *words).status == 0  # of batches of 4 and 1
