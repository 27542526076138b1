"""Tables of ``noah rows``: the paper's rows, and what they cost to train."""

from fractions import Fraction

import torch

from noah_lightning.analysis.tables import Table
from noah_lightning.models.cost import multiply_adds
from noah_lightning.models.from_config import build_model
from noah_lightning.models.rows import ROWS, read_row, row_config

IMAGES = 1_281_167  # ImageNet's training set
_PASSES = 3  # a backward pass costs about two forward passes


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
    """The command of each row with NOAH, the published top-1, and the arithmetic that training takes."""
    columns = ["command", "NOAH top-1", "GAP top-1", "epochs", "G multiply-adds", "EFLOP"]
    rows = []
    for row in ROWS:
        config = row_config(row)
        with torch.device("meta"):
            model = build_model(config)
        size = config.data.image_size
        forward = multiply_adds(model, (1, 3, size, size))
        training = 2 * forward * _PASSES * IMAGES * config.recipe.epochs  # a multiply-add is two operations
        published = [f"{getattr(config.model.published, head):.2f}" for head in ("noah", "gap")]
        command = f"python train.py model={row} head=noah"
        cost = [str(config.recipe.epochs), f"{forward / 1e9:.2f}", f"{training / 1e18:.2f}"]
        rows.append([command, *published, *cost])
    return Table(columns, rows, left=["command"])
