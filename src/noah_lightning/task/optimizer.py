"""Optimiser and parameter groups."""

from collections.abc import Callable, Collection
from typing import Any

import torch
from timm.optim import param_groups_weight_decay
from torch import nn

from noah_lightning.config.schema import OptimizerSettings
from noah_lightning.errors import ConfigError, one_line

_OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}


def check_options(settings: OptimizerSettings) -> None:
    """Refuse ``recipe.optimizer.options`` that torch's optimizer does not take.

    Raises:
        ConfigError: it does not.
    """
    try:
        _make(settings, [torch.zeros(1)], weight_decay=settings.weight_decay)
    except (TypeError, ValueError, LookupError, RuntimeError) as error:
        raise ConfigError(f"recipe.optimizer.options={dict(settings.options)}: {one_line(error)}") from error


def scaled_to(settings: OptimizerSettings, batch: int) -> OptimizerSettings:
    """The settings for ``batch`` images per optimiser step: the rate grows with the batch (arXiv 1706.02677).

    Without ``lr_batch`` they stay as they are.
    """
    if settings.lr_batch is None:
        return settings
    return settings.model_copy(update={"lr": settings.lr * batch / settings.lr_batch, "lr_batch": batch})


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
