"""Optimizer, learning rate, average of the weights, and skipping of steps that are not finite."""

import logging
import math
from collections.abc import Callable
from typing import Any, Self

import lightning.pytorch as pl
import torch
from timm.optim import Lars, param_groups_weight_decay
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from noah_lightning.config.schema import OptimizerSettings, ScheduleSettings
from noah_lightning.errors import ConfigError, RunFailedEverywhere, one_line

log = logging.getLogger("noah_lightning")
MAX_SKIPPED_IN_A_ROW = 20  # enough for the float16 scaler to find its scale
_OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
    "lars": Lars,
}


def check_options(settings: OptimizerSettings) -> None:
    """Raise ConfigError for ``recipe.optimizer.options`` that torch's optimizer does not accept."""
    try:
        _make(settings, [torch.zeros(1)], weight_decay=settings.weight_decay)
    except (TypeError, ValueError, LookupError, RuntimeError) as error:
        raise ConfigError(f"recipe.optimizer.options={dict(settings.options)}: {one_line(error)}") from error


def make_optimizer(model: nn.Module, settings: OptimizerSettings) -> torch.optim.Optimizer:
    """Torch's optimizer over :func:`parameter_groups`."""
    return _make(settings, parameter_groups(model, settings.weight_decay, settings.decay))


def _make(settings: OptimizerSettings, parameters: list[Any], **arguments: Any) -> torch.optim.Optimizer:
    options = dict(settings.options)
    if settings.name != "lars" and not {"fused", "foreach", "differentiable"} & options.keys():  # one of them
        options["fused"] = True
    return _OPTIMIZERS[settings.name](parameters, lr=settings.lr, **options, **arguments)


def parameter_groups(model: nn.Module, weight_decay: float, decay: str) -> list[dict[str, Any]]:
    """The trainable parameters, each in exactly one group ``{"params": [...], "weight_decay": ...}``.

    ``decay="all"`` is the official CNN recipe; ``"matrices"`` is timm's rule, which the official DeiT, PVT, Mixer
    and gMLP recipes follow.
    """
    if decay == "all":
        return [{"params": [p for p in model.parameters() if p.requires_grad], "weight_decay": weight_decay}]
    spared = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()  # type: ignore[operator]
    return param_groups_weight_decay(model, weight_decay, no_weight_decay_list=spared)


def scaled_to(settings: OptimizerSettings, batch: int) -> OptimizerSettings:
    """The settings for ``batch`` images per optimizer step: the rate scales with the batch (arXiv 1706.02677).

    Without ``lr_batch`` they are unchanged.
    """
    if settings.lr_batch is None:
        return settings
    return settings.model_copy(update={"lr": settings.lr * batch / settings.lr_batch, "lr_batch": batch})


def learning_rate(time: float, base_lr: float, epochs: int, schedule: ScheduleSettings) -> float:
    """Learning rate at ``time``, in epochs since the start (2.5 is half-way through the third of ``epochs``).

    A pure function, so that there is no state to save.
    """
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


class WeightAverage(ModelEmaV3):
    """Exponential moving average of parameters and buffers (timm's), which takes no part in training.

    It starts as a copy of the model, ``module``; each ``update(model)`` moves it by 1 - decay towards the model.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, decay)
        self.requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode: in training mode, dropout would draw and batch norm would update itself."""
        return super().train(False)


class StepGuard:
    """Skips optimizer steps whose gradient is not finite, as if their batches did not exist.

    DDP has averaged the gradients, so all processes decide alike without a collective. Each step waits for the
    device once.
    """

    def __init__(self) -> None:
        self.skipped = False  # the latest step
        self.total = self.in_a_row = 0
        self._buffers: list[Tensor] = []

    def keep_buffers(self, model: nn.Module) -> None:
        """Copy the buffers, because the running averages of batch norm would keep a NaN forever."""
        self._buffers = [buffer.clone() for buffer in model.buffers()]

    def check(self, model: nn.Module, trainer: pl.Trainer) -> None:
        """Skip the coming step if the model's gradients are not finite.

        Raises:
            RunFailedEverywhere: too many steps in a row were skipped.
        """
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        self.skipped = not all_finite(gradients)
        if not self.skipped:
            self.in_a_row = 0
            return
        self.total += 1
        self.in_a_row += 1
        where = f"epoch {trainer.current_epoch + 1}, batch {trainer.fit_loop.batch_idx + 1}"
        if self.in_a_row > MAX_SKIPPED_IN_A_ROW:
            raise RunFailedEverywhere(
                f"{where}: no finite gradient for {MAX_SKIPPED_IN_A_ROW} steps in a row; try a smaller "
                "recipe.optimizer.lr, recipe.gradient_clip=1 or trainer.precision=bf16-mixed"
            )
        log.warning("%s: the loss or gradient is not finite; step skipped, %d so far", where, self.total)
        for buffer, kept in zip(model.buffers(), self._buffers, strict=True):
            buffer.copy_(kept)
        if getattr(trainer.precision_plugin, "scaler", None) is None:  # float16's scaler skips the step itself
            model.zero_grad()  # torch's optimizers ignore parameters without gradient: no momentum, no weight decay


def all_finite(tensors: list[Tensor]) -> bool:
    """Whether all elements of all tensors are finite; waits for the device."""
    return bool(get_total_norm(tensors, norm_type=math.inf).isfinite())  # the largest, as a sum could overflow
