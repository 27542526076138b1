"""Training task: loss, metrics, optimizer and learning rate."""

from noah_lightning.task.classification import ClassificationTask
from noah_lightning.task.lr_schedule import ScheduleSettings, learning_rate
from noah_lightning.task.mixing import MixingSettings
from noah_lightning.task.optimizer import OptimizerSettings, make_optimizer, parameter_groups, scaled_to

__all__ = [
    "ClassificationTask",
    "MixingSettings",
    "OptimizerSettings",
    "ScheduleSettings",
    "learning_rate",
    "make_optimizer",
    "parameter_groups",
    "scaled_to",
]
