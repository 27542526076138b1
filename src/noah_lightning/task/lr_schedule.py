"""Learning rate schedules as pure functions of the time in epochs.

There is no scheduler object and so no state to save: the rate follows from the settings, the epoch and the batch.
"""

import math
from dataclasses import dataclass, field
from itertools import pairwise

from noah_lightning.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class ScheduleSettings:
    """How the learning rate moves (``recipe.schedule``).

    Attributes:
        name: ``step``: times ``gamma`` at each milestone. ``cosine``, ``linear``: from the base rate at epoch 0 to
            ``final_lr`` at the last epoch. ``constant``.
        per: ``epoch``: set once at the start of each epoch, as the official code does; ``step``: before every
            step of the optimiser.
        warmup_epochs: the rate first rises linearly from ``warmup_lr`` to the base rate. The schedule's own clock
            runs from epoch 0 all the same (timm's convention), so the rate joins the curve under way.
        warmup_lr: rate at epoch 0 where there is a warm-up.
        final_lr: rate at the end of ``cosine`` and ``linear``.
        milestones: epochs at which ``step`` multiplies by ``gamma``.
        gamma: factor at each milestone.
        lag: epochs by which the rate runs behind the schedule; until then it stays at its beginning.

    Raises:
        ConfigError: a value out of its range.
    """

    name: str = "constant"
    per: str = "epoch"
    warmup_epochs: float = 0
    warmup_lr: float = 0.0
    final_lr: float = 0.0
    milestones: list[float] = field(default_factory=list)
    gamma: float = 0.1
    lag: float = 0

    def __post_init__(self) -> None:
        names = ("constant", "step", "cosine", "linear")
        if self.name not in names:
            raise ConfigError(f"recipe.schedule.name={self.name!r} is unknown{did_you_mean(str(self.name), names)}")
        if self.per not in ("epoch", "step"):
            raise ConfigError(f"recipe.schedule.per={self.per!r} must be epoch or step")
        for key in ("warmup_epochs", "warmup_lr", "final_lr", "gamma", "lag"):
            value = getattr(self, key)
            if not is_non_negative(value):
                raise ConfigError(f"recipe.schedule.{key}={value!r} must be a number of at least 0")
        if self.name == "step" and not _are_rising(self.milestones):
            raise ConfigError(f"recipe.schedule.milestones={self.milestones!r} must be rising epochs, at least one")


def is_non_negative(value: object) -> bool:
    """Whether it is a finite number of at least 0."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def _are_rising(epochs: object) -> bool:
    if not isinstance(epochs, list | tuple) or not epochs or not all(map(is_non_negative, epochs)):
        return False
    return all(earlier < later for earlier, later in pairwise(epochs))


def learning_rate(time: float, base_lr: float, epochs: int, schedule: ScheduleSettings) -> float:
    """Learning rate at ``time``, in epochs since the start (2.5 is half-way through the third of ``epochs``)."""
    if schedule.per == "epoch":
        time = math.floor(time)
    time = max(0, time - schedule.lag)
    if time < schedule.warmup_epochs:
        return schedule.warmup_lr + (base_lr - schedule.warmup_lr) * time / schedule.warmup_epochs
    progress = time / epochs
    if schedule.name == "step":
        return base_lr * schedule.gamma ** sum(time >= milestone for milestone in schedule.milestones)
    if schedule.name == "cosine":
        return schedule.final_lr + (base_lr - schedule.final_lr) * 0.5 * (1 + math.cos(math.pi * progress))
    if schedule.name == "linear":
        return base_lr + (schedule.final_lr - base_lr) * progress
    return base_lr
