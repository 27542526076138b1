"""Explanations of logits, by heads that explain themselves, and as class activation maps of mean pooling.

Shapes: B images, C channels, L positions, K classes.
"""

from typing import Any

import torch
from torch import Tensor, nn

from noah_lightning.errors import ConfigError
from noah_lightning.heads.base import Explanation
from noah_lightning.models.classifier import Classifier
from noah_lightning.models.feature_extractor import as_positions

TOLERANCE = 1e-4  # between the sum of the contributions and the logit, relative to the image's largest logit
# How a model says that it lacks what a class activation map needs, or has it in another form.
_OTHER_FORM = (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError)


def explain(model: nn.Module, images: Tensor) -> Explanation:
    """The model's logits with their attention and contributions, whose sums are checked against the logits.

    The model is one of ours, or timm's own (``head="gap"``), in evaluation mode; ``images`` are normalized.

    Raises:
        ConfigError: the head does not explain its logits, or its contributions do not sum to them.
    """
    logits = model(images)
    if isinstance(model, Classifier):
        if not hasattr(model.head, "explain"):
            raise ConfigError(
                f"{type(model.head).__name__} does not explain its logits; use a head that attends, such as head=noah"
            )
        why = model.explain(images)
        if (error := sum_error(why.contribution, logits)) > TOLERANCE:
            raise ConfigError(
                f"{type(model.head).__name__}: contributions and logits differ by {error:.1g} of the largest logit; "
                "its method explain() does not describe what it computes"
            )
    else:
        why = class_activation_maps(model, images, logits)
    return why._replace(logits=logits)


def class_activation_maps(model: nn.Module, images: Tensor, logits: Tensor) -> Explanation:
    """The contributions of a timm model whose classifier is the mean over the positions, then a linear layer.

    Each position contributes its own logit divided by L, and the attention is 1 / L everywhere.

    Raises:
        ConfigError: the logits are not these sums, as of a model that classifies its class token.
    """
    contribution = None
    timm_model: Any = model
    try:
        classifier = timm_model.get_classifier()
        prefix_tokens = getattr(model, "num_prefix_tokens", None) or 0
        output = timm_model.forward_features(images)
        features = as_positions(output, classifier.in_features, prefix_tokens)  # (B, C, L)
        contribution = classifier(features.transpose(1, 2)).transpose(1, 2) / features.shape[2]  # (B, K, L)
    except _OTHER_FORM:
        pass
    if contribution is None or contribution.ndim != 3 or sum_error(contribution, logits) > TOLERANCE:
        raise ConfigError(
            f"{type(model).__name__} does not classify the mean of its positions linearly, so its own classifier has "
            "no class activation maps; train it with another head, such as head=noah or head=avg"
        )
    positions = contribution.shape[2]
    attention = contribution.new_full((1, 1, 1, 1), 1 / positions)
    return Explanation(logits, attention.expand(len(logits), 1, logits.shape[1], positions), contribution)


def sum_error(contribution: Tensor, logits: Tensor) -> float:
    """Largest error of a sum of contributions (B, K, L), relative to the largest logit of its image."""
    sums = contribution.sum(dim=2)
    if sums.shape != logits.shape:
        return float("inf")
    largest = logits.abs().amax(dim=1).clamp_min(torch.finfo(logits.dtype).tiny)  # (B,)
    error = ((sums - logits).abs().amax(dim=1) / largest).amax()
    return float("inf") if error.isnan() else float(error)
