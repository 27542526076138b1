"""What each setting may be, as far as it can be told without the others, and without torch.

What is not in the table is described elsewhere: ``recipe.optimizer``, ``schedule``, ``mixing`` and ``augment`` by
their dataclasses, ``data`` by the data set's class, ``model.args`` by timm, and other heads by their classes.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from noah_lightning.config.checks import (
    channel_values,
    flag,
    fraction,
    is_number,
    one_of,
    positive,
    rate,
    share,
    text,
    whole_number,
)
from noah_lightning.data import REGISTRY  # names only: no data set is imported
from noah_lightning.errors import ConfigError

Check = Callable[[str, Any], object]  # of (key, value); raises ConfigError


def _whole(low: int, high: int | None = None) -> Check:
    return partial(whole_number, low=low, high=high)


def _word(*allowed: str) -> Check:
    return partial(one_of, allowed=allowed)


def _or_null(check: Check) -> Check:
    def checked(key: str, value: Any) -> None:
        try:
            if value is not None:
                check(key, value)
        except ConfigError as error:
            raise ConfigError(f"{error}, or null") from None

    return checked


def _clip(key: str, value: Any) -> None:
    if value is not None and not (is_number(value) and 0 < value < math.inf):
        raise ConfigError(f"{key}={value!r} must be a number above 0, or null for no clipping")


def _average(key: str, value: Any) -> None:
    if value is not None and not (is_number(value) and 0 < value < 1):
        raise ConfigError(f"{key}={value!r} must be a number above 0 and below 1, or null for no average")


def _limit(key: str, value: Any) -> None:
    batches = isinstance(value, int) and value >= 1
    part = isinstance(value, float) and 0 < value <= 1
    if value is not None and (isinstance(value, bool) or not (batches or part)):
        raise ConfigError(
            f"{key}={value!r} must be a number of batches of at least 1, a share of them above 0 and at most 1, "
            "or null for all"
        )


def _devices(key: str, value: Any) -> None:
    number = isinstance(value, int) and not isinstance(value, bool) and (value >= 1 or value == -1)
    gpus = isinstance(value, list) and all(type(gpu) is int and gpu >= 0 for gpu in value) and value != []
    if value != "auto" and not number and not (gpus and len(set(value)) == len(value)):
        raise ConfigError(
            f"{key}={value!r} must be a whole number of at least 1, a list of GPUs such as [0,1], or auto"
        )


def _precision(key: str, value: Any) -> None:
    one_of(key, str(value) if type(value) is int else value, PRECISIONS)


def _deterministic(key: str, value: Any) -> None:
    if value != "warn" and not isinstance(value, bool):
        raise ConfigError(f"{key}={value!r} must be true, false or warn")


def _percent(key: str, value: Any) -> None:
    if not (is_number(value) and 0 <= value <= 100):
        raise ConfigError(f"{key}={value!r} must be a number from 0 to 100")


# As Lightning has them; those for sharded models are left out, as checkpoints here are whole.
PRECISIONS = (
    *("32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true", "32", "bf16", "16", "64"),
    *("transformer-engine", "transformer-engine-float16"),
)
STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters_false")
ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps", "tpu")
INITS = ("official", "lecun", "small")
LONGEST = 10**6  # epochs

# The first mistake is told: those in a recipe before those of the settings that follow it.
RANGES: dict[str, Check] = {
    "seed": _whole(0, 2**32 - 1),
    "checkpoint.every_n_steps": _whole(1),
    "checkpoint.every_minutes": positive,
    "checkpoint.keep": _whole(1),
    "recipe.name": text,
    "recipe.epochs": _whole(1, LONGEST),
    "recipe.batch_size": _whole(1),
    "recipe.gradient_clip": _clip,
    "recipe.ema": _average,
    "recipe.label_smoothing": rate,
    "recipe.head_dropout": rate,
    "recipe.equal_dropout": flag,
    "recipe.drop_path": rate,
    "recipe.block_dropout": rate,
    "recipe.preprocess.mean": partial(channel_values, zero_allowed=True),
    "recipe.preprocess.std": partial(channel_values, zero_allowed=False),
    "recipe.preprocess.interpolation": _word("bilinear", "bicubic"),
    "recipe.preprocess.crop_ratio": fraction,
    "trainer.accelerator": _word(*ACCELERATORS),
    "trainer.devices": _devices,
    "trainer.num_nodes": _whole(1),
    "trainer.strategy": _word(*STRATEGIES),
    "trainer.sync_batchnorm": flag,
    "trainer.max_epochs": _whole(1, LONGEST),
    "trainer.precision": _precision,
    "trainer.channels_last": flag,
    "trainer.compile": flag,
    "trainer.nonfinite": _word("stop", "skip"),
    "trainer.accumulate_grad_batches": _whole(1),
    "trainer.gradient_clip_val": _clip,
    "trainer.check_val_every_n_epoch": _whole(1),
    "trainer.limit_train_batches": _limit,
    "trainer.limit_val_batches": _limit,
    "trainer.num_sanity_val_steps": _whole(-1),  # all of them
    "trainer.log_every_n_steps": _whole(1),
    "trainer.deterministic": _deterministic,
    "trainer.benchmark": _or_null(flag),
    "model.name": text,
    "model.pretrained": flag,
    "model.weights": _or_null(text),
    "model.class_token": _or_null(flag),
    "model.init": _word("timm", "official"),
    "model.noah.head_num": _whole(1),
    "model.noah.key_ratio": share,
    "model.noah.init": _word(*INITS),
    "model.published.gap": _or_null(_percent),
    "model.published.noah": _or_null(_percent),
    "data.name": _word(*REGISTRY),
    "data.num_classes": _whole(1),  # these two are the model's too, which is built first
    "data.image_size": _whole(1),
    "logger.name": _word("csv", "tensorboard", "wandb"),
}
# Further ones of a group, by its name.
HEADS: dict[str, dict[str, Check]] = {
    "gap": {"head.name": text, "head.dropout": rate},
    "noah": {
        "head.name": text,
        "head.head_num": _whole(1),
        "head.key_ratio": share,
        "head.dropout": rate,
        "head.head_split": flag,
        "head.kv_split": flag,
        "head.init": _word(*INITS),
        "head.kernel": _word("auto", "fused", "sliced", "definition"),
    },
}
LOGGERS: dict[str, dict[str, Check]] = {
    "wandb": {
        "logger.project": text,
        "logger.entity": _or_null(text),
        "logger.group": _or_null(text),
        "logger.picture_every_n_epochs": _whole(0),
    }
}
