"""Training task: loss, metrics, optimizer and learning rate."""

from noah_lightning.task.classification import ClassificationTask
from noah_lightning.task.optimizer import check_options, learning_rate, make_optimizer, parameter_groups, scaled_to

__all__ = ["ClassificationTask", "check_options", "learning_rate", "make_optimizer", "parameter_groups", "scaled_to"]
