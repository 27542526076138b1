"""Training task: loss, metrics, optimizer and learning rate."""

from noah_lightning.task.classification import ClassificationTask
from noah_lightning.task.losses import make_loss
from noah_lightning.task.objective import check_objective, make_objective
from noah_lightning.task.optimizer import check_options, learning_rate, make_optimizer, parameter_groups, scaled_to

__all__ = [
    "ClassificationTask",
    "check_objective",
    "check_options",
    "learning_rate",
    "make_loss",
    "make_objective",
    "make_optimizer",
    "parameter_groups",
    "scaled_to",
]
