"""Tables of the paper's models (``noah rows``) and of the heads that fit a backbone (``noah heads``)."""

from fractions import Fraction
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import nn

from noah_lightning.analysis.tables import Table
from noah_lightning.config.compose import compose_config
from noah_lightning.config.heads import NoahHeadSettings
from noah_lightning.errors import HeadSettingError, count
from noah_lightning.heads import NOAHHead, head_class, head_names, make_head
from noah_lightning.models import FeatureMapBackbone, make_backbone
from noah_lightning.models.classifier import build_model
from noah_lightning.models.cost import count_parameters, kept_for_backward, multiply_adds
from noah_lightning.models.feature_extractor import grid_shape
from noah_lightning.models.rows import ROWS, read_row, row_config
from noah_lightning.models.timm_models import default_image_size

IMAGES = 1_281_167  # ImageNet's training set
PASSES = 3  # a backward pass costs about two forward passes
HEAD_NUMS = (1, 2, 4, 8, 16)
KEY_RATIOS = (1 / 8, 1 / 4, 1 / 2, 3 / 4)
COST = ("parameters", "M multiply-adds", "kept per image")
KEPT = "kept per image: what a training step keeps for the backward pass, in float32"
LETTERS = "x features at L positions, z input of the linear classifier, y logits, q queries, MHA multi-head attention"


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


class HeadsReport(NamedTuple):
    """What ``noah heads`` prints: lines about the model, the cost of heads, and remarks."""

    model: list[str]
    table: Table
    notes: list[str]


def settings_report(model: str, num_classes: int) -> HeadsReport:
    """Cost of NOAH over the feature map of ``model``, a row of the paper or any timm name, for common settings.

    The model is built on the meta device, which takes no memory.

    Raises:
        UserError: an unknown model, or one without a spatial feature map.
    """
    found = _features(model)
    channels, positions = found.shape
    with torch.device("meta"):
        pooled = nn.Linear(channels, num_classes)
    rows = [["GAP", "", *_cost(pooled, (channels,)), ""]]
    impossible = []
    for r, n in product(KEY_RATIOS, HEAD_NUMS):
        try:
            with torch.device("meta"):
                head = NOAHHead(channels, num_classes, head_num=n, key_ratio=r, dropout=0.1)
        except HeadSettingError:  # they do not divide the channels
            impossible.append(f"N={n} r={Fraction(r)}")
            continue
        published = (n, r) == (found.noah.get("head_num"), found.noah.get("key_ratio"))
        cost = _cost(head, (channels, positions))
        rows.append([f"N={n}", f"r={Fraction(r)}", *cost, "the paper's" if published else ""])
    table = Table(["head", "", *COST, " "], rows, left=["head", "", " "])
    notes = [f"impossible, as they do not divide the channels: {', '.join(impossible)}"] if impossible else []
    return HeadsReport(found.describe(model, num_classes), table, [KEPT, *notes])


def list_report(model: str, num_classes: int) -> HeadsReport:
    """Source, equation and cost of all heads over the features of ``model``; arguments and errors as above."""
    found = _features(model)
    with torch.device("meta"):
        pooled = nn.Linear(found.shape[0], num_classes)
    own: Any = head_class("avg")
    rows = [["gap", own.paper, f"{own.equation}, the model's own classifier", *_cost(pooled, found.shape[:1])]]
    notes = []
    for name in sorted(head_names(), key=lambda name: (name != "noah", name)):
        kind = head_class(name)
        shapes: list[tuple[int, ...]] = [found.shape]
        try:
            with torch.device("meta"):
                if getattr(kind, "reads_class_token", False):
                    make_backbone(found.name, reads_class_token=True, **found.args)
                    shapes.append(found.shape[:1])
                head = make_head(name, found.shape[0], num_classes, **(found.noah if name == "noah" else {}))
            cost = _cost(head, *shapes)
        except HeadSettingError as error:
            cost = ["", "", ""]
            notes.append(f"{name} does not fit: {error}")
        rows.append([name, getattr(kind, "paper", ""), getattr(kind, "equation", ""), *cost])
    table = Table(["head", "paper", "equation", *COST], rows, left=["head", "paper", "equation"])
    return HeadsReport(found.describe(model, num_classes), table, [LETTERS, KEPT, *notes])


class _Features(NamedTuple):
    """The feature map (C, L) of a model, and the settings of NOAH for a row of the paper."""

    name: str  # of timm
    args: dict[str, Any]
    noah: dict[str, Any]
    size: tuple[int, int]
    backbone: FeatureMapBackbone
    shape: tuple[int, int]

    def describe(self, model: str, num_classes: int) -> list[str]:
        channels, positions = self.shape
        height, width = grid_shape(positions, self.size[0] / self.size[1])
        operations = multiply_adds(self.backbone, (1, 3, *self.size)) / 1e6
        return [
            f"{model}  image {self.size[0]} × {self.size[1]}  {count(num_classes, 'class')}",
            f"feature map  {channels} channels × {height} × {width} = {positions} positions",
            f"backbone     {count_parameters(self.backbone):,} parameters, {operations:,.0f} M multiply-adds",
        ]


def _features(model: str) -> _Features:
    """Features of ``model`` on the meta device."""
    name, args, noah = model, {}, {}
    if model in ROWS:
        config = compose_config([f"model={model}"])
        assert isinstance(config.head, NoahHeadSettings)
        name, args = config.model.name, config.model.args
        noah = {"head_num": config.head.head_num, "key_ratio": config.head.key_ratio}
    size = default_image_size(name)
    with torch.device("meta"):
        backbone = make_backbone(name, **args)
        channels, positions = backbone(torch.empty(1, 3, *size)).shape[1:]
    return _Features(name, args, noah, size, backbone, (channels, positions))


def _cost(head: nn.Module, *shapes: tuple[int, ...]) -> list[str]:
    """Parameters, multiply-adds and memory of a head for one image with inputs of these shapes."""
    operations = multiply_adds(head, *((1, *shape) for shape in shapes)) / 1e6
    return [f"{count_parameters(head):,}", f"{operations:.1f}", f"{kept_for_backward(head, *shapes) / 2**20:.2f} MiB"]
