"""Optimiser and parameter groups."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from timm.optim import param_groups_weight_decay
from torch import nn

from noah_lightning.config.checks import whole_number
from noah_lightning.errors import ConfigError, did_you_mean, one_line
from noah_lightning.task.lr_schedule import is_non_negative

_OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}


@dataclass(frozen=True)
class OptimizerSettings:
    """Which optimiser, and what it decays (``recipe.optimizer``).

    Attributes:
        name: ``sgd`` or ``adamw``.
        lr: base learning rate.
        weight_decay: factor of the decay.
        decay: ``all`` parameters, or only ``matrices``: parameters with more than one dimension that the model does
            not list in ``no_weight_decay()``, which is timm's rule.
        options: further arguments of torch's optimiser, such as ``momentum`` or ``betas``. Unless they choose
            otherwise, all weights are updated by one fused kernel.
        lr_batch: images per optimiser step that ``lr`` is meant for; None: any number. See :func:`scaled_to`.

    Raises:
        ConfigError: a value out of its range, or options the optimiser does not take.
    """

    name: str
    lr: float
    weight_decay: float = 0.0
    decay: str = "all"
    options: Mapping[str, Any] = field(default_factory=dict)
    lr_batch: int | None = None

    def __post_init__(self) -> None:
        if str(self.name) not in _OPTIMIZERS:
            advice = did_you_mean(str(self.name), _OPTIMIZERS)
            raise ConfigError(f"recipe.optimizer.name={self.name!r} is unknown{advice}")
        if self.decay not in ("all", "matrices"):
            raise ConfigError(f"recipe.optimizer.decay={self.decay!r} must be all or matrices")
        for key in ("lr", "weight_decay"):
            value = getattr(self, key)
            if not is_non_negative(value):
                raise ConfigError(f"recipe.optimizer.{key}={value!r} must be a number of at least 0")
        if self.lr_batch is not None:
            whole_number("recipe.optimizer.lr_batch", self.lr_batch, low=1)
        if not isinstance(self.options, Mapping):
            raise ConfigError(f"recipe.optimizer.options={self.options!r} must be arguments of the optimiser by name")
        try:  # known now, before a run has begun
            _make(self, [torch.zeros(1)], weight_decay=self.weight_decay)
        except (TypeError, ValueError, LookupError, RuntimeError) as error:
            raise ConfigError(f"recipe.optimizer.options={dict(self.options)}: {one_line(error)}") from error


def scaled_to(settings: OptimizerSettings, batch: int) -> OptimizerSettings:
    """The settings for ``batch`` images per optimiser step: the rate grows with the batch (arXiv 1706.02677).

    Without ``lr_batch`` they stay as they are.
    """
    if settings.lr_batch is None:
        return settings
    return replace(settings, lr=settings.lr * batch / settings.lr_batch, lr_batch=batch)


def parameter_groups(model: nn.Module, weight_decay: float, decay: str) -> list[dict[str, Any]]:
    """The trainable parameters, each in exactly one group ``{"params": [...], "weight_decay": ...}``.

    ``decay="all"`` is the official CNN recipe; ``"matrices"`` is timm's rule, which the official DeiT, PVT, Mixer
    and gMLP recipes follow.
    """
    if decay == "all":
        return [{"params": [p for p in model.parameters() if p.requires_grad], "weight_decay": weight_decay}]
    spared: Callable[[], Collection[str]] = getattr(model, "no_weight_decay", tuple)
    return param_groups_weight_decay(model, weight_decay, no_weight_decay_list=spared())


def make_optimizer(model: nn.Module, settings: OptimizerSettings) -> torch.optim.Optimizer:
    """Torch's optimiser over :func:`parameter_groups`."""
    return _make(settings, parameter_groups(model, settings.weight_decay, settings.decay))


def _make(settings: OptimizerSettings, parameters: list[Any], **arguments: Any) -> torch.optim.Optimizer:
    options = dict(settings.options)
    if not {"fused", "foreach", "differentiable"} & options.keys():  # torch takes one of them
        options["fused"] = True
    return _OPTIMIZERS[settings.name](parameters, lr=settings.lr, **options, **arguments)
