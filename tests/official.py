"""The recorded figures of the official release, and the rule that fills its models without any download."""

import json
import zlib
from collections.abc import Container
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

DATA = Path(__file__).parent / "data"
MODELS: dict[str, dict[str, dict[str, Any]]] = json.loads((DATA / "official_models.json").read_text())
TRAJECTORIES: list[dict[str, Any]] = json.loads((DATA / "training_trajectories.json").read_text())
# The smallest row of each family and recipe; the others differ from these in depth and width only.
ONE_OF_EACH_KIND = ("resnet18", "mobilenetv2_035", "mobilenetv3_small", "shufflenetv2_100", "deit_tiny_050")
ONE_OF_EACH_KIND += ("pvt_tiny_050", "mixer_s16_050", "gmlp_ti16_050")
LARGE = ("resnet101", "resnet152", "deit_base", "mixer_b16", "gmlp_s16")


def every_row(slow: Container[str]) -> list[Any]:
    """All rows with both heads as parameters of a test, some of them only for the slow tests."""
    marks = pytest.mark.slow
    return [
        pytest.param(row, head, marks=marks if row in slow else ()) for row, heads in MODELS.items() for head in heads
    ]


def filled(row: str, head: str, seed: int = 0) -> dict[str, Tensor]:
    """The official state dict of a row under its official names, each entry a function of its name and shape."""
    return {key: fill(key, shape, seed) for key, shape in MODELS[row][head]["state_dict"].items()}


def fill(key: str, shape: list[int], seed: int = 0) -> Tensor:
    """One entry: numbers of a scale that keeps activations in bounds, the same in every framework."""
    if key.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    n = np.random.RandomState(zlib.crc32(f"{seed}:{key}".encode())).standard_normal(shape).astype(np.float32)
    if key.endswith("running_var"):
        n = 1 + 0.1 * np.abs(n)
    elif key.endswith("running_mean"):
        n = 0.1 * n
    elif len(shape) >= 2:
        n = n / np.sqrt(np.prod(shape[1:]), dtype=np.float32)
    elif key.endswith("weight"):
        n = 1 + 0.1 * n
    else:
        n = 0.1 * n
    return torch.from_numpy(n)


def recorded_images() -> Tensor:
    """The two images (2, 3, 224, 224) whose logits were recorded."""
    return torch.from_numpy(np.random.RandomState(0).standard_normal((2, 3, 224, 224)).astype(np.float32))


def trajectory_batch(step: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images (8, 3, 64, 64) and labels (8,) of a step of the recorded trajectories."""
    random = np.random.RandomState(1000 * seed + step)
    images = torch.from_numpy(random.standard_normal((8, 3, 64, 64)).astype(np.float32))
    return images, torch.from_numpy(random.randint(0, 1000, 8))
