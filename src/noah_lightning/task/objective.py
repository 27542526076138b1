"""Objective of a task: the loss that training minimizes, and the score that a validation is judged by."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from noah_lightning.config.schema import RecipeSettings
from noah_lightning.errors import ConfigError
from noah_lightning.task.losses import Loss, cross_entropy, cross_entropy_sum, make_loss, make_loss_sum
from noah_lightning.task.metrics import Accuracy, AccuracyCounter, Counter, most_probable
from noah_lightning.task.multilabel import LossCounter, Precision, PrecisionCounter

Score = Accuracy | Precision


class Objective(NamedTuple):
    """All that differs between single-label and multi-label tasks."""

    loss: Loss  # mean over a training batch
    loss_sum: Loss  # over a validation batch
    score: type[Score]
    monitor: str  # metric of which the best epoch has the highest value
    training: Callable[[], Counter]
    validation: Callable[[], Counter]
    train_metrics: tuple[str, ...]  # attributes of what the counter of training computes
    predict: Callable[[Tensor], Tensor]  # logits to what predictions.npz holds
    prediction: str  # its name there


def make_objective(recipe: RecipeSettings) -> Objective:
    """The objective by ``recipe.loss``."""
    if recipe.loss == "cross_entropy":
        return single_label(make_loss(recipe))
    return Objective(
        make_loss(recipe),
        make_loss_sum(recipe),
        Precision,
        "map",
        training=LossCounter,
        validation=PrecisionCounter,
        train_metrics=("loss",),
        predict=Tensor.float,
        prediction="logits",
    )


def single_label(loss: Loss | None = None) -> Objective:
    """Cross-entropy, or another mean ``loss`` in training, and accuracy."""
    return Objective(
        loss or cross_entropy(0.0),
        cross_entropy_sum,
        Accuracy,
        "top1",
        training=AccuracyCounter,
        validation=AccuracyCounter,
        train_metrics=("loss", "top1"),
        predict=most_probable,
        prediction="guesses",
    )


def check_objective(recipe: RecipeSettings, multilabel: bool, data: str) -> None:
    """Raise ConfigError for a loss that is not for the labels of the data set ``data``."""
    if multilabel and recipe.loss == "cross_entropy":
        raise ConfigError(
            f"recipe.loss=cross_entropy is for images of one class each, but data={data} is multi-label; "
            "choose recipe.loss=bce or recipe.loss=asymmetric"
        )
    if not multilabel and recipe.loss != "cross_entropy":
        raise ConfigError(
            f"recipe.loss={recipe.loss} is for multi-label data, but each image of data={data} has one class; "
            "choose recipe.loss=cross_entropy"
        )
