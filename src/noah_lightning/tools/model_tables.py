"""Tables of the paper's models (``noah rows``) and of the heads that fit a backbone (``noah heads``)."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import nn

from noah_lightning.analysis.tables import Table
from noah_lightning.config.choices import NoahHeadSettings
from noah_lightning.config.compose import compose_config
from noah_lightning.errors import HeadSettingError
from noah_lightning.heads import NOAHHead
from noah_lightning.models import make_backbone
from noah_lightning.models.classifier import build_model
from noah_lightning.models.cost import count_parameters, kept_for_backward, multiply_adds
from noah_lightning.models.feature_extractor import grid_shape
from noah_lightning.models.rows import ROWS, read_row, row_config
from noah_lightning.models.timm_models import default_image_size

IMAGES = 1_281_167  # ImageNet's training set
PASSES = 3  # a backward pass costs about two forward passes
HEAD_NUMS = (1, 2, 4, 8, 16)
KEY_RATIOS = (1 / 8, 1 / 4, 1 / 2, 3 / 4)


def rows_table() -> Table:
    """The paper's rows: parameters as computed here, top-1 as published."""
    columns = ["row", "timm model", "GAP params", "NOAH params", "N", "r", "GAP top-1", "NOAH top-1", "recipe"]
    rows = []
    for row in map(read_row, ROWS):
        parameters = [f"{row.parameters[head]:,}" for head in ("gap", "noah")]
        published = [f"{row.published[head]:.2f}" for head in ("gap", "noah")]
        settings = [str(row.head_num), str(Fraction(row.key_ratio))]
        rows.append([row.name, row.timm_name, *parameters, *settings, *published, row.recipe])
    return Table(columns, rows, left=["row", "timm model", "recipe"])


def cost_table() -> Table:
    """Training command, published top-1 and training cost of each row with NOAH."""
    columns = ["command", "NOAH top-1", "GAP top-1", "epochs", "G multiply-adds", "EFLOP"]
    rows = []
    for row in ROWS:
        config = row_config(row)
        with torch.device("meta"):
            model = build_model(config)
        size = config.data.image_size
        forward = multiply_adds(model, (1, 3, size, size))
        training = 2 * forward * PASSES * IMAGES * config.recipe.epochs  # a multiply-add is two operations
        published = [f"{getattr(config.model.published, head):.2f}" for head in ("noah", "gap")]
        command = f"python train.py model={row} head=noah"
        cost = [str(config.recipe.epochs), f"{forward / 1e9:.2f}", f"{training / 1e18:.2f}"]
        rows.append([command, *published, *cost])
    return Table(columns, rows, left=["command"])


@dataclass(frozen=True)
class Preflight:
    """The feature map of a model, and the cost of the heads that fit it.

    Attributes:
        model: row of the paper, or timm name.
        image_size: height and width of the images, in pixels.
        feature_map: C, H and W.
        parameters: of the backbone.
        multiply_adds: of the backbone, for one image.
        heads: the baseline and every possible (N, r), with parameters, multiply-adds for one image, and memory per
            image kept between forward and backward (float32).
        impossible: every (N, r) that does not divide the channels.
    """

    model: str
    image_size: tuple[int, int]
    feature_map: tuple[int, int, int]
    parameters: int
    multiply_adds: int
    heads: Table
    impossible: list[str]


def preflight(model: str, num_classes: int = 1000) -> Preflight:
    """Examine ``model``, a row of the paper or any timm name, on the meta device, which takes no memory.

    Raises:
        UserError: an unknown model, or one without a spatial feature map.
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
    """timm's name of a model, its arguments, and its (N, r) in the paper."""
    if model not in ROWS:
        return model, {}, None
    config = compose_config([f"model={model}"])
    assert isinstance(config.head, NoahHeadSettings)
    return config.model.name, config.model.args, (config.head.head_num, config.head.key_ratio)


def _heads(width: int, num_classes: int) -> Iterator[tuple[int, float, NOAHHead | None]]:
    """Every (N, r) with its head on the meta device, or None if it does not divide the channels."""
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
