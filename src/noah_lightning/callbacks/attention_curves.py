"""Curves of how a head attends to a fixed set of validation images: entropy, and diversity of the blocks.

Shapes: B images, N attention blocks, K classes, L positions.
"""

import math
from collections.abc import Sequence

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from torch import Tensor

from noah_lightning.callbacks.attention_images import AttentionCallback, AttentionPicture
from noah_lightning.config.schema import RunConfig
from noah_lightning.data.datamodule import ImageDataModule
from noah_lightning.distributed.environment import rank
from noah_lightning.heads import head_class
from noah_lightning.loggers.factory import takes_pictures
from noah_lightning.models.classifier import Classifier


def attention_callbacks(config: RunConfig, loggers: Sequence[Logger], data: ImageDataModule) -> list[Callback]:
    """The callbacks of ``config.attention``; none for a head without attention, no pictures of multi-label data."""
    settings, head = config.attention, config.head.name
    pictures = settings.picture_every_n_epochs and not data.multilabel and any(map(takes_pictures, loggers))
    if head == "gap" or not hasattr(head_class(head), "explain"):
        return []
    callbacks: list[Callback] = []
    if settings.curve_images:
        callbacks.append(AttentionCurves(data, settings.curve_images))
    if pictures:
        callbacks.append(AttentionPicture(data, settings.picture_images, settings.picture_every_n_epochs))
    return callbacks


class AttentionCurves(AttentionCallback):
    """Logs ``val/attention_entropy`` and ``val/attention_diversity`` with the other metrics of each validation.

    They are means over the images and all classes, of :func:`attention_entropy` and :func:`attention_diversity`.
    What is undefined is not logged: the entropy over one position, the diversity of one block.
    """

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking or rank() > 0:
            return
        measured = self.explain(trainer, pl_module, _measure)
        means = {name: torch.cat([few[name] for few in measured]).mean() for name in measured[0]}
        pl_module.log_dict(means, rank_zero_only=True)


def _measure(model: Classifier, images: Tensor) -> dict[str, Tensor]:
    """What is defined of entropy and diversity, by the name of its curve, each (B,)."""
    attention = model.explain(images).attention  # (B, N, K, L)
    if attention.stride(2) == 0:  # the same for all classes, expanded
        attention = attention[:, :, :1]
    attention, measured = attention.float(), {}
    if attention.shape[3] > 1:
        measured["val/attention_entropy"] = attention_entropy(attention)
    if attention.shape[1] > 1:
        measured["val/attention_diversity"] = attention_diversity(attention)
    return measured


def attention_entropy(attention: Tensor) -> Tensor:
    """How widely each image is attended to, (B, N, K, L) → (B,).

    The entropy of the attention over the positions, -sum over l of a_l log a_l, divided by its maximum log L: 1 if
    all positions have the same attention, 0 if one has all of it. Mean over blocks and classes.
    """
    entropy = torch.special.entr(attention).sum(dim=3)  # (B, N, K, L) -> (B, N, K)
    return entropy.mean(dim=(1, 2)) / math.log(attention.shape[3])


def attention_diversity(attention: Tensor) -> Tensor:
    """How differently the blocks attend to each image, (B, N, K, L) → (B,).

    One minus the cosine similarity of the attention of two blocks, mean over all N (N - 1) / 2 pairs of blocks and
    over the classes: 0 if all blocks attend alike, 1 if no two of them attend to the same position.
    """
    blocks = attention.shape[1]
    directions = F.normalize(attention, dim=3)  # of length 1
    # The squared length of their sum is the sum over all pairs, of which N are of a block with itself.
    pairs = directions.sum(dim=1).square().sum(dim=2) - blocks  # (B, N, K, L) -> (B, K)
    return 1 - pairs.mean(dim=1) / (blocks * (blocks - 1))
