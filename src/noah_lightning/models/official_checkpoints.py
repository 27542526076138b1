"""Checkpoints of the official release of NOAH: their layouts, and their parameter names under ours."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from timm.models.efficientnet import EfficientNet
from timm.models.resnet import ResNet
from torch import Tensor, nn

from noah_lightning.errors import WeightsError, name_first
from noah_lightning.models.classifier import Classifier
from noah_lightning.models.rows import create_row
from noah_lightning.models.weights import StateDict, read_file, state_dict_in
from noah_lightning.models.zoo.convolutional import MobileNetV3Small, ShuffleNetV2
from noah_lightning.models.zoo.tokens import PyramidVisionTransformer

_MOBILENETV2_STAGES = (0, 1, 3, 6, 10, 13, 16)  # blocks before each stage; the official code counts through
_MOBILENETV2_LAYERS = {"conv_pw": "0.0", "bn1": "0.1", "conv_dw": "1.0", "bn2": "1.1", "conv_pwl": "2", "bn3": "3"}
_MOBILENETV2_FIRST = {"conv_dw": "0.0", "bn1": "0.1", "conv_pw": "1", "bn2": "2"}


def _mobilenetv2_block(match: re.Match[str]) -> str:
    stage, block, layer = int(match[1]), int(match[2]), match[3]
    layers = _MOBILENETV2_LAYERS if stage else _MOBILENETV2_FIRST
    return f"features.{1 + _MOBILENETV2_STAGES[stage] + block}.conv.{layers[layer]}."


def _from_one(text: str) -> Callable[[re.Match[str]], str]:
    """A replacement that counts blocks or stages from 1 instead of 0."""
    return lambda match: text.format(int(match[1]) + 1)


# Our names to the official ones, where they differ: pattern and replacement, the first that matches.
_POOLED_HEAD = (r"^fc\.", "head.2.")
_RULES: dict[type[nn.Module], list[tuple[str, Any]]] = {
    ResNet: [_POOLED_HEAD],
    ShuffleNetV2: [_POOLED_HEAD],
    EfficientNet: [
        (r"^conv_stem\.", "features.0.0."),
        (r"^bn1\.", "features.0.1."),
        (r"^blocks\.(\d+)\.(\d+)\.(\w+)\.", _mobilenetv2_block),
        (r"^conv_head\.", "features.18.0."),
        (r"^bn2\.", "features.18.1."),
        (r"^classifier\.", "head.2."),
    ],
    MobileNetV3Small: [
        (r"^stem\.", "features.0."),
        (r"^blocks\.(\d+)\.5\.reduce\.", _from_one("features.{}.conv.5.fc.0.")),
        (r"^blocks\.(\d+)\.5\.expand\.", _from_one("features.{}.conv.5.fc.2.")),
        (r"^blocks\.(\d+)\.", _from_one("features.{}.conv.")),
        (r"^conv_last\.", "features.12."),
        (r"^conv_head\.", "features.14."),
        (r"^classifier\.", "classifier.1."),
    ],
    PyramidVisionTransformer: [
        (r"^stages\.(\d+)\.blocks\.", _from_one("block{}.")),
        (r"^stages\.(\d+)\.pos_embed$", _from_one("pos_embed{}")),
        (r"^stages\.(\d+)\.patch_embed\.", _from_one("patch_embed{}.")),
    ],
}
# Without the pooling, which is features.13.
_MOBILENETV3_WITH_NOAH = [(r"^head\.", "classifier."), (r"^conv_head\.", "features.13.")]


def convert_official(state_dict: Mapping[str, Tensor], model: str, head: str) -> StateDict:
    """The official weights of a row of the paper under our names: what ``create_row(model, head)`` loads.

    The released DeiT-Tiny ×0.75 and ×0.5 have a layer more than was published; their weights fit
    ``create_row(model, head, ["model.args.pre_logits=true"])``.

    Args:
        state_dict: official names, with or without the ``module.`` of a parallel model.
        model: a row, such as ``resnet50``.
        head: ``gap`` or ``noah``.

    Raises:
        ConfigError: no such row or head.
        WeightsError: a missing, left-over or misshapen weight, with the first names.
    """
    state = {key.removeprefix("module."): tensor for key, tensor in state_dict.items()}
    with torch.device("meta"):
        target = create_row(model, head, row_overrides(model, state))
    ours = target.state_dict()
    keys = {name: _official_name(name, target) for name in ours}
    what = f"these are not the official weights of {model} with {head}"
    if missing := [key for key in keys.values() if key not in state]:
        has_noah = any(key.endswith("query.weight") for key in state)
        other = "" if has_noah == (head == "noah") else f"; they look like --head {'noah' if has_noah else 'gap'}"
        raise WeightsError(f"{what}: {len(missing)} missing ({name_first(missing)}){other}")
    official = set(keys.values())
    if left_over := [key for key in state if key not in official]:
        raise WeightsError(f"{what}: {len(left_over)} left over ({name_first(left_over)})")
    for name, key in keys.items():
        if state[key].shape != ours[name].shape:
            raise WeightsError(f"{what}: {key} is {tuple(state[key].shape)}, not {tuple(ours[name].shape)}")
    return {name: state[key].to(ours[name].dtype).contiguous() for name, key in keys.items()}


def _official_name(name: str, model: nn.Module) -> str:
    """An entry of the state dict of a row's model under its name in the official code."""
    backbone = model.backbone.model if isinstance(model, Classifier) else model
    rules = _RULES.get(type(backbone), [])
    if isinstance(model, Classifier) and isinstance(backbone, MobileNetV3Small):
        rules = [*_MOBILENETV3_WITH_NOAH, *rules]
    name = name.removeprefix("backbone.model.")
    return next((new for pattern, to in rules if (new := re.sub(pattern, to, name)) != name), name)


def row_overrides(row: str, state: Mapping[str, Tensor]) -> list[str]:
    """Settings of the row that these weights need: the layer that the released narrow DeiTs have."""
    narrow = row in ("deit_tiny_075", "deit_tiny_050")
    return ["model.args.pre_logits=true"] if narrow and "pre_logits.fc.weight" in state else []


def read_official(path: Path, ema: bool = False) -> StateDict:
    """The weights in an official checkpoint file; nothing in the file is executed.

    Bare state dicts and those under ``state_dict`` or ``model`` are read, with ``ema`` those under
    ``state_dict_ema`` or ``model_ema``.

    Raises:
        WeightsError: no such file, an unreadable one, or no such weights in it.
    """
    return state_dict_in(read_file(path), path, ema)


def holds_average(path: Path) -> bool:
    """Whether a readable checkpoint file has averaged weights too."""
    try:
        read_official(path, ema=True)
    except WeightsError:
        return False
    return True
