"""Losses of single-label and multi-label data, by ``recipe.loss``."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from timm.loss import AsymmetricLossMultiLabel
from torch import Tensor

from noah_lightning.config.schema import RecipeSettings

# Function of logits (B, K) and targets; these are classes (B,), soft targets (B, K), or multi-hot labels (B, K).
Loss = Callable[[Tensor, Tensor], Tensor]
PADDING = -1  # label of images that fill up a validation batch, so that all processes have as many batches


def make_loss(recipe: RecipeSettings) -> Loss:
    """The mean loss of a training batch, for targets of the kind that the recipe's data and mixing give."""
    if recipe.loss == "cross_entropy":
        return cross_entropy(0.0 if recipe.mixing.on else recipe.label_smoothing)  # mixing smooths its own targets
    of_images = _image_losses(recipe)
    return lambda logits, targets: of_images(logits, targets).mean()


def make_loss_sum(recipe: RecipeSettings) -> Loss:
    """The sum of the losses of a validation batch, without label smoothing and padding images."""
    if recipe.loss == "cross_entropy":
        return cross_entropy_sum
    of_images = _image_losses(recipe)
    return lambda logits, labels: (of_images(logits, labels.clamp(min=0)) * is_image(labels)).sum()


def cross_entropy(label_smoothing: float) -> Loss:
    """Mean cross-entropy; ``label_smoothing`` is the share of the target that is spread over all classes."""
    return partial(F.cross_entropy, label_smoothing=label_smoothing)


def cross_entropy_sum(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, ignore_index=PADDING, reduction="sum")


def is_image(labels: Tensor) -> Tensor:
    """Which images of a batch are not padding: bool (B,), of labels (B,) or (B, K)."""
    return (labels if labels.ndim == 1 else labels[:, 0]) > PADDING


def _image_losses(recipe: RecipeSettings) -> Loss:
    """The loss (B,) of each image with labels (B, K): a mean over the classes for bce, a sum for asymmetric."""
    if recipe.loss == "bce":

        def mean_over_classes(logits: Tensor, targets: Tensor) -> Tensor:
            return F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="none").mean(dim=1)

        return mean_over_classes
    asymmetric = AsymmetricLossMultiLabel(**recipe.asymmetric.arguments(), reduction="none")
    return lambda logits, targets: torch.sum(asymmetric(logits, targets), dim=1)
