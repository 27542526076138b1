"""Preflight of ``noah heads``: the heads that fit a backbone and what they cost, before anything is trained."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import nn

from noah_lightning.analysis.tables import Table
from noah_lightning.config.compose import compose_config
from noah_lightning.config.schema import NoahHeadSettings
from noah_lightning.errors import HeadSettingError
from noah_lightning.heads import NOAHHead
from noah_lightning.models import make_backbone
from noah_lightning.models.cost import count_parameters, kept_for_backward, multiply_adds
from noah_lightning.models.feature_extractor import grid_shape
from noah_lightning.models.rows import ROWS
from noah_lightning.models.timm_models import default_image_size

HEAD_NUMS = (1, 2, 4, 8, 16)
KEY_RATIOS = (1 / 8, 1 / 4, 1 / 2, 3 / 4)


@dataclass(frozen=True)
class Preflight:
    """The feature map of a model, and the cost of the heads that fit it.

    Attributes:
        model: row of the paper, or timm name.
        image_size: height and width of the images, in pixels.
        feature_map: C, H and W.
        parameters: of the backbone.
        multiply_adds: of the backbone, for one image.
        heads: the baseline and every possible (N, r), with parameters, multiply-adds for one image, and what a
            training step keeps of each image between forward and backward (float32).
        impossible: the (N, r) that do not divide the channels.
    """

    model: str
    image_size: tuple[int, int]
    feature_map: tuple[int, int, int]
    parameters: int
    multiply_adds: int
    heads: Table
    impossible: list[str]


def preflight(model: str, num_classes: int = 1000) -> Preflight:
    """Examines ``model``, a row of the paper or any timm name, on the meta device: without memory or arithmetic.

    Raises:
        UserError: an unknown model, or one without a map over positions.
    """
    name, args, row_settings = _find(model)
    size = default_image_size(name)
    with torch.device("meta"):
        backbone = make_backbone(name, **args)
        features = backbone(torch.empty(1, 3, *size))
    width, positions = backbone.out_channels, features.shape[2]
    shape = (width, positions)
    rows = [_cost_row("GAP", "", nn.Sequential(_Mean(), nn.Linear(width, num_classes, device="meta")), shape)]
    impossible = []
    for n, r, head in _heads(width, num_classes):
        if head is None:
            impossible.append(f"N={n} r={Fraction(r)}")
        else:
            rows.append(_cost_row(f"N={n}", f"r={Fraction(r)}", head, shape, (n, r) == row_settings))
    columns = ["head", "", "parameters", "M multiply-adds", "kept per image", " "]
    return Preflight(
        model=model,
        image_size=size,
        feature_map=(width, *grid_shape(positions, size[0] / size[1])),
        parameters=count_parameters(backbone),
        multiply_adds=multiply_adds(backbone, (1, 3, *size)),
        heads=Table(columns, rows, left=["head", "", " "]),
        impossible=impossible,
    )


def _find(model: str) -> tuple[str, dict[str, Any], tuple[int, float] | None]:
    """timm's name of a model, its arguments, and the (N, r) that the paper gives it."""
    if model not in ROWS:
        return model, {}, None
    config = compose_config([f"model={model}"])
    assert isinstance(config.head, NoahHeadSettings)
    return config.model.name, config.model.args, (config.head.head_num, config.head.key_ratio)


def _heads(width: int, num_classes: int) -> Iterator[tuple[int, float, NOAHHead | None]]:
    """Every (N, r), and the head on ``meta``, or None where it cannot be."""
    for r in KEY_RATIOS:
        for n in HEAD_NUMS:
            try:
                with torch.device("meta"):
                    yield n, r, NOAHHead(width, num_classes, head_num=n, key_ratio=r, dropout=0.1)
            except HeadSettingError:
                yield n, r, None


class _Mean(nn.Module):
    """(B, C, L) → (B, C)."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features.mean(dim=2)


def _cost_row(n: str, r: str, head: nn.Module, shape: tuple[int, int], of_the_paper: bool = False) -> list[str]:
    kept = kept_for_backward(head, shape) / 2**20
    return [
        n,
        r,
        f"{count_parameters(head):,}",
        f"{multiply_adds(head, (1, *shape)) / 1e6:.1f}",
        f"{kept:.2f} MiB",
        "the paper's" if of_the_paper else "",
    ]
