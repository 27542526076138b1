"""Learning rate schedules as a pure function of the time in epochs, so that there is no state to save."""

import math

from noah_lightning.config.schema import ScheduleSettings


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
