"""Tables of the paper's models (``noah rows``) and of the heads that fit a backbone (``noah heads``)."""

from fractions import Fraction
from itertools import product

import torch
from torch import nn

from noah_lightning.analysis.tables import Table
from noah_lightning.config.compose import compose_config
from noah_lightning.config.heads import NoahHeadSettings
from noah_lightning.errors import HeadSettingError, count
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


def show_heads(model: str, num_classes: int) -> None:
    """Print the feature map of ``model``, a row of the paper or any timm name, and the cost of the heads that fit it.

    The model is built on the meta device, which takes no memory.

    Raises:
        UserError: an unknown model, or one without a spatial feature map.
    """
    name, args, published = model, {}, None
    if model in ROWS:
        config = compose_config([f"model={model}"])
        assert isinstance(config.head, NoahHeadSettings)
        name, args, published = config.model.name, config.model.args, (config.head.head_num, config.head.key_ratio)
    size = default_image_size(name)
    with torch.device("meta"):
        backbone = make_backbone(name, **args)
        channels, positions = backbone(torch.empty(1, 3, *size)).shape[1:]
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
        cost = _cost(head, (channels, positions))
        rows.append([f"N={n}", f"r={Fraction(r)}", *cost, "the paper's" if (n, r) == published else ""])
    height, width = grid_shape(positions, size[0] / size[1])
    operations = multiply_adds(backbone, (1, 3, *size)) / 1e6
    print(f"{model}  image {size[0]} × {size[1]}  {count(num_classes, 'class')}")
    print(f"feature map  {channels} channels × {height} × {width} = {positions} positions")
    print(f"backbone     {count_parameters(backbone):,} parameters, {operations:,.0f} M multiply-adds")
    columns = ["head", "", "parameters", "M multiply-adds", "kept per image", " "]
    Table(columns, rows, left=["head", "", " "]).show()
    print("kept per image: what a training step keeps for the backward pass, in float32")
    if impossible:
        print(f"impossible, as they do not divide the channels: {', '.join(impossible)}")


def _cost(head: nn.Module, shape: tuple[int, ...]) -> list[str]:
    """Parameters, multiply-adds and memory of a head for one image with features of this shape."""
    operations, kept = multiply_adds(head, (1, *shape)) / 1e6, kept_for_backward(head, shape) / 2**20
    return [f"{count_parameters(head):,}", f"{operations:.1f}", f"{kept:.2f} MiB"]
