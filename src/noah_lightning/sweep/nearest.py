"""Classification by nearest neighbors on pooled features, the reference that trains nothing."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from noah_lightning.models.feature_store import Features

NEIGHBORS, TEMPERATURE = 20, 0.07
CHUNK = 1024  # validation images at a time


def nearest_neighbors(train: Features, val: Features, device: torch.device) -> int:
    """Number of validation images whose class gets the most votes of the 20 nearest training images.

    Features are averaged over the positions; a neighbor's vote is exp(cosine similarity / 0.07), as in DINO's
    protocol (arXiv 2104.14294).
    """
    known, labels = _pooled(train).to(device), torch.from_numpy(train.labels).to(device)
    queries, truth = _pooled(val), torch.from_numpy(val.labels)
    classes, correct = int(labels.max()) + 1, 0
    for start in range(0, len(queries), CHUNK):
        similarity = queries[start : start + CHUNK].to(device) @ known.T  # (Q, images)
        nearest, numbers = similarity.topk(min(NEIGHBORS, len(known)), dim=1)  # (Q, 20)
        votes = torch.zeros(len(nearest), classes, device=device)
        votes.scatter_add_(1, labels[numbers], (nearest / TEMPERATURE).exp())
        correct += int((votes.argmax(dim=1).cpu() == truth[start : start + CHUNK]).sum())
    return correct


def _pooled(features: Features) -> Tensor:
    """Unit vectors (images, C) of features (images, C, L), averaged over their positions, or of pooled ones."""
    parts = []
    for start in range(0, len(features), CHUNK):
        (inputs, *_), _ = features.batch(np.arange(start, min(start + CHUNK, len(features))))
        parts.append(F.normalize(inputs.flatten(2).mean(dim=2) if inputs.ndim > 2 else inputs, dim=1))
    return torch.cat(parts)
