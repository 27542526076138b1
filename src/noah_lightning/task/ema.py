"""A running average of a model's weights."""

from typing import Self

from timm.utils import ModelEmaV3
from torch import nn


class WeightAverage(ModelEmaV3):
    """timm's exponential moving average of parameters and buffers, which takes no part in training.

    It begins as a copy of the model; each ``update(model)`` moves it by 1 - decay towards the model. The average
    itself is ``module``.

    Args:
        model: the model to follow.
        decay: share of the average that an update keeps (``recipe.ema``).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, decay)
        self.requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode: in training mode, dropout would draw and batch norm would count on its own."""
        return super().train(False)
