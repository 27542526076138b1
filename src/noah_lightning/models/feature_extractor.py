"""Any timm model as "image → feature map (B, C, L)", taken from where pooling would have happened.

There are two ways to the map:

* unpooled: the model without its pooling, so that what it does between its trunk and its pooling (MobileNetV3's
  last convolution, ConvNeXt's norm) still runs, on every position. It returns NCHW, NHWC or tokens, some of them
  class, distillation or register tokens, which are no positions and are dropped.
* last stage: models that cannot do without pooling, or give back something else (class tokens only, lists, a 1×1
  map), tell their last feature map through timm's ``forward_intermediates``.

Which one a model takes is found by running it once on the ``meta`` device, which costs no arithmetic.
"""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import to_2tuple
from torch import Tensor, nn

from noah_lightning.errors import NoSpatialMapError, one_line
from noah_lightning.models.timm_models import build_on_meta, build_timm_model, default_image_size

TimmModel = Any  # an nn.Module with the methods and attributes that all of timm's models share


class FeatureMapBackbone(nn.Module):
    """A timm model that maps images (B, 3, H, W) to features (B, C, L), positions in row-major order.

    Attributes:
        out_channels: C.
    """

    def __init__(self, model: TimmModel, out_channels: int, last_stage: bool) -> None:
        super().__init__()
        self.model: TimmModel = model
        self.out_channels = out_channels
        self.last_stage = last_stage

    def forward(self, images: Tensor) -> Tensor:
        if self.last_stage:
            return _last_stage(self.model, images).flatten(2)
        return _positions(self.model(images), self.out_channels, _prefix_tokens(self.model))

    def no_weight_decay(self) -> set[str]:
        """Parameters that the model's authors do not decay, such as position embeddings."""
        spared = getattr(self.model, "no_weight_decay", set)
        return {f"model.{name}" for name in spared()}


def make_backbone(
    name: str,
    pretrained: bool = False,
    weights: str | None = None,
    image_size: int | None = None,
    class_token: bool | None = None,
    init: str = "timm",
    **model_args: Any,
) -> FeatureMapBackbone:
    """Build timm's ``name`` as a feature map; arguments as of :func:`build_timm_model`.

    ``class_token`` says whether a ViT that can do without keeps its class token. By default it does only where
    loaded weights were trained with it: a head over the map does not read it, and the paper's ViTs have none.
    Parameters that the map does not depend on, such as the norm of a dropped class token, are frozen.

    Raises:
        NoSpatialMapError: the model has no map over positions.
        UnknownModelError, WeightsError, ConfigError: as :func:`build_timm_model`.
    """
    if class_token is None:
        class_token = bool(pretrained or weights)
    way = _find_way(name, class_token, model_args)
    model: TimmModel = build_timm_model(name, 0, pretrained, weights, image_size, init, **way.model_args)
    way.take(model)
    for parameter_name in way.unused:
        model.get_parameter(parameter_name).requires_grad_(False)
    return FeatureMapBackbone(model, way.out_channels, way.last_stage)


@dataclass(frozen=True)
class _Way:
    """How to get the feature map out of a model."""

    model_args: dict[str, Any]
    last_stage: bool
    out_channels: int
    unused: list[str]  # parameters without influence on the map

    def take(self, model: TimmModel) -> None:
        """Remove what comes after the map."""
        if self.last_stage:
            _prune_to_last_stage(model)
        else:
            _remove_pooling(model)


def _find_way(name: str, class_token: bool, model_args: dict[str, Any]) -> _Way:
    size = to_2tuple(model_args.get("img_size") or default_image_size(name))
    images = torch.empty(2, 3, *size, device="meta")
    return _unpooled_way(name, class_token, model_args, images) or _last_stage_way(name, model_args, images)


def _unpooled_way(name: str, class_token: bool, model_args: dict[str, Any], images: Tensor) -> _Way | None:
    try:
        model, model_args = build_unpooled(name, class_token, model_args)
    except AssertionError:  # how timm says that a model cannot do without
        return None
    output = model(images)
    width, prefix_tokens = getattr(model, "head_hidden_size", 0), _prefix_tokens(model)
    if not _is_map(output, width, prefix_tokens, images):
        return None
    features = _positions(output, width, prefix_tokens)
    return _Way(model_args, False, width, _unused_parameters(model, features))


def build_unpooled(name: str, class_token: bool, model_args: dict[str, Any]) -> tuple[TimmModel, dict[str, Any]]:
    """timm's ``name`` on ``meta`` without classifier and pooling, and the arguments that build it so.

    Raises:
        AssertionError: the model cannot do without pooling.
    """
    model: TimmModel = build_on_meta(name, **model_args)
    if not class_token and _has_optional_class_token(model):
        model_args = {**model_args, "class_token": False, "global_pool": ""}  # no token, no pooling by token
        model = build_on_meta(name, **model_args)
    _remove_pooling(model)
    return model, model_args


def _last_stage_way(name: str, model_args: dict[str, Any], images: Tensor) -> _Way:
    model: TimmModel = build_on_meta(name, **model_args)
    try:
        _prune_to_last_stage(model)
        features = _last_stage(model, images)
    except (AttributeError, NotImplementedError, TypeError) as error:
        raise _no_map(name, one_line(error)) from error
    if features.ndim != 4 or features[0, 0].numel() < 2:
        raise _no_map(name, f"its last stage is {tuple(features.shape)}")
    return _Way(model_args, True, features.shape[1], _unused_parameters(model, features))


def _no_map(name: str, reason: str) -> NoSpatialMapError:
    return NoSpatialMapError(f"{name} has no spatial feature map for a head to attend to ({reason}); use head=gap")


def _remove_pooling(model: TimmModel) -> None:
    """Pooling goes after the weights have come: where it decides the name of the last norm, both must agree."""
    if hasattr(model, "reset_classifier"):  # timm's pure encoders have neither classifier nor pooling
        model.reset_classifier(0, "")


def _prune_to_last_stage(model: TimmModel) -> None:
    """Remove what comes after the last stage, such as VGG's 119 M parameters of pooled layers."""
    model.prune_intermediate_layers(1)


def _last_stage(model: TimmModel, images: Tensor) -> Tensor:
    """Normed map (B, C, H, W) of the model's last stage."""
    return model.forward_intermediates(images, indices=1, norm=True, output_fmt="NCHW", intermediates_only=True)[-1]


def _prefix_tokens(model: TimmModel) -> int:
    return getattr(model, "num_prefix_tokens", None) or 0


def _has_optional_class_token(model: TimmModel) -> bool:
    constructor = inspect.signature(type(model)).parameters
    return getattr(model, "cls_token", None) is not None and "class_token" in constructor


def _is_map(output: Any, width: int, prefix_tokens: int, images: Tensor) -> bool:
    """Whether the output is one map of this width over more than one position of a grid."""
    if not isinstance(output, Tensor):
        return False
    if output.ndim == 4:
        return width in (output.shape[1], output.shape[3]) and output[0].numel() > width
    if output.ndim != 3 or output.shape[2] != width:
        return False
    rows, columns = grid_shape(output.shape[1] - prefix_tokens, images.shape[2] / images.shape[3])
    return rows * columns == output.shape[1] - prefix_tokens and rows * columns > 1


def _positions(output: Tensor, width: int, prefix_tokens: int) -> Tensor:
    """NCHW, NHWC or tokens → (B, C, L)."""
    if output.ndim == 3:
        return output[:, prefix_tokens:].transpose(1, 2)  # (B, T, C) -> (B, C, L)
    if output.shape[1] != width:
        output = output.movedim(3, 1)  # (B, H, W, C) -> (B, C, H, W)
    return output.flatten(2)


def grid_shape(positions: int, aspect: float) -> tuple[int, int]:
    """Rows and columns of a row-major grid of ``positions`` over an image whose height / width is ``aspect``."""
    rows = max(1, round((positions * aspect) ** 0.5))
    return rows, max(1, positions // rows)


def _unused_parameters(model: TimmModel, features: Tensor) -> list[str]:
    """Names of the parameters that the features' autograd graph does not reach."""
    used: set[Tensor] = set()
    seen, ahead = {features.grad_fn}, [features.grad_fn]
    while ahead:
        node = ahead.pop()
        if (leaf := getattr(node, "variable", None)) is not None:  # where a gradient would be accumulated
            used.add(leaf)
        new = {following for following, _ in getattr(node, "next_functions", ()) if following is not None} - seen
        seen |= new
        ahead += new
    return [name for name, parameter in model.named_parameters() if parameter not in used]
