"""Frozen backbones: the part of a model that is trained, and what that part reads."""

import logging
from typing import Any

import torch
from torch import Tensor, nn

from noah_lightning.config.schema import ModelSettings
from noah_lightning.errors import ConfigError
from noah_lightning.models.classifier import Classifier

log = logging.getLogger("noah_lightning")


def freeze(model: nn.Module) -> nn.Module:
    """Freeze all of ``model`` but its head, and return the head; raises ConfigError as :func:`head_of`."""
    head = head_of(model)
    model.requires_grad_(False)
    head.requires_grad_(True)
    return head


def warn_of_random_features(config: ModelSettings) -> None:
    """Log a warning if the frozen backbone starts from no weights."""
    if config.freeze and not (config.pretrained or config.weights):
        log.warning("the frozen backbone has random weights; set model.pretrained=true or model.weights=FILE")


def head_of(model: nn.Module) -> nn.Module:
    """The head of a classifier, or the last linear layer of a timm model (``head=gap``).

    Raises:
        ConfigError: the timm model has no such layer, or several.
    """
    if isinstance(model, Classifier):
        return model.head
    timm_model: Any = model
    classifier = timm_model.get_classifier()
    if not isinstance(classifier, nn.Linear):
        raise ConfigError(
            f"model.freeze=true: the classifier of {type(model).__name__} is not one linear layer; use head=avg"
        )
    return classifier


@torch.no_grad()
def inputs_of_head(model: nn.Module, images: Tensor) -> tuple[Tensor, ...]:
    """What the head reads for normalized images (B, 3, H, W): features (B, C, L) and perhaps the class token (B, C).

    For a timm model they are the pooled features (B, F) that its last linear layer reads.
    """
    if isinstance(model, Classifier):
        return model.features(images)
    timm_model: Any = model
    return (timm_model.forward_head(timm_model.forward_features(images), pre_logits=True),)
