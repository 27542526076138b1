"""The rows of the paper's table: 26 architectures, each with its baseline and with NOAH (arXiv 2402.02377).

A row is a file ``conf/model/<row>.yaml``; this file knows their order and how to make something of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import yaml
from torch import nn

from noah_lightning.config.compose import compose_config, config_dir
from noah_lightning.config.parsing import parse
from noah_lightning.config.schema import ModelSettings, RunConfig
from noah_lightning.errors import ConfigError, did_you_mean
from noah_lightning.heads import NOAHHead
from noah_lightning.models.classifier import Classifier, build_model
from noah_lightning.models.cost import count_parameters
from noah_lightning.models.feature_extractor import FeatureMapBackbone, without_class_token
from noah_lightning.models.timm_models import build_on_meta

ROWS = (  # in the table's order
    *("resnet18", "resnet50", "resnet101", "resnet152"),
    *("mobilenetv2_100", "mobilenetv2_075", "mobilenetv2_050", "mobilenetv2_035"),
    *("mobilenetv3_small", "shufflenetv2_100"),
    *("deit_base", "deit_small", "deit_tiny", "deit_tiny_075", "deit_tiny_050"),
    *("pvt_tiny", "pvt_tiny_075", "pvt_tiny_050"),
    *("mixer_b16", "mixer_s16", "mixer_s16_075", "mixer_s16_050"),
    *("gmlp_s16", "gmlp_ti16", "gmlp_ti16_075", "gmlp_ti16_050"),
)
HEADS = ("gap", "noah")
NUM_CLASSES = 1000
RECIPE = "override /recipe@_global_.recipe"  # how a model's file brings its recipe


@dataclass(frozen=True)
class Row:
    """What the table says of one row."""

    name: str
    timm_name: str
    parameters: dict[str, int]  # by head
    head_num: int
    key_ratio: float
    published: dict[str, float]  # top-1 on ImageNet by head, percent
    recipe: str


def row_config(row: str, head: str = "noah", overrides: Sequence[str] = ()) -> RunConfig:
    """The resolved configuration of ``noah train model=<row> head=<head> <overrides>``.

    Raises:
        ConfigError: no such row or head, or overrides that do not fit.
    """
    if row not in ROWS:
        raise ConfigError(f"the paper has no row {row!r}{did_you_mean(str(row), ROWS)}; noah rows lists them")
    if head not in HEADS:
        raise ConfigError(f"the paper has no head {head!r}; its heads are gap and noah")
    return compose_config([f"model={row}", f"head={head}", *overrides])


def create_row(row: str, head: str = "noah", overrides: Sequence[str] = ()) -> nn.Module:
    """A row of the paper as a model: its N and r, its starting weights, and the dropout rates of its recipe.

    Args:
        row: a name of :data:`ROWS`.
        head: ``noah``, or ``gap`` for the baseline.
        overrides: changed settings, such as ``head.head_num=8`` or ``data.num_classes=10``.

    Raises:
        UserError: no such row or head, or overrides that do not fit.

    >>> create_row("deit_tiny", head="noah")
    """
    return build_model(row_config(row, head, overrides))


def read_row(name: str) -> Row:
    """The facts of a row; parameters are counted on models without memory that are never run."""
    model, recipe = _read_files(name)
    baseline = build_on_meta(model.name, NUM_CLASSES, **model.args)
    args = without_class_token(baseline, model.args)
    backbone = FeatureMapBackbone(build_on_meta(model.name, **args))
    n, r = model.noah.head_num, model.noah.key_ratio
    with torch.device("meta"):
        head = NOAHHead(backbone.out_channels, NUM_CLASSES, head_num=n, key_ratio=r)
    parameters = {"gap": count_parameters(baseline), "noah": count_parameters(Classifier(backbone, head))}
    return Row(name, model.name, parameters, n, r, {head: getattr(model.published, head) for head in HEADS}, recipe)


def _read_files(row: str) -> tuple[ModelSettings, str]:
    """A row's model group and the name of its recipe, without Hydra, which would take longer than all the rest."""
    files = config_dir() / "model"
    content = yaml.safe_load((files / f"{row}.yaml").read_text(encoding="utf-8"))
    recipe = next(entry[RECIPE] for entry in content.pop("defaults") if RECIPE in entry)
    return parse(
        ModelSettings, yaml.safe_load((files / "timm.yaml").read_text(encoding="utf-8")) | content, "model"
    ), recipe
