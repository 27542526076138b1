"""Any timm model as "image → feature map (B, C, L)", taken from where pooling would have happened.

There are two ways to the map:

* unpooled: the model without its pooling, so that what it does between its trunk and its pooling (MobileNetV3's
  last convolution, ConvNeXt's norm) still runs, on every position. It returns NCHW, NHWC or tokens, some of them
  class, distillation or register tokens, which are not positions and are dropped.
* last stage: models that cannot do without pooling, or return something else (class tokens only, lists, a 1×1
  map), give their last feature map through timm's ``forward_intermediates``.

Which one a model takes is found by running it once on the ``meta`` device, which costs no arithmetic.
"""

import inspect
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
    size = to_2tuple(model_args.get("img_size") or default_image_size(name))
    images = torch.empty(2, 3, *size, device="meta")
    unpooled = _unpooled(name, class_token, model_args, images)
    on_meta, features, model_args = unpooled or _pruned(name, model_args, images)
    model = build_timm_model(name, 0, pretrained, weights, image_size, init, **model_args)
    if unpooled:
        _remove_pooling(model)
    else:
        _prune_to_last_stage(model)
    for parameter_name in _unused_parameters(on_meta, features):
        model.get_parameter(parameter_name).requires_grad_(False)
    return FeatureMapBackbone(model, features.shape[1], last_stage=not unpooled)


def build_unpooled(name: str, class_token: bool, model_args: dict[str, Any]) -> tuple[TimmModel, dict[str, Any]]:
    """timm's ``name`` on ``meta`` without classifier and pooling, and the arguments that build it so.

    Raises:
        AssertionError: the model cannot do without pooling.
    """
    model: TimmModel = build_on_meta(name, **model_args)
    has_token = getattr(model, "cls_token", None) is not None
    if not class_token and has_token and "class_token" in inspect.signature(type(model)).parameters:
        model_args = {**model_args, "class_token": False, "global_pool": ""}  # no token, no pooling by token
        model = build_on_meta(name, **model_args)
    _remove_pooling(model)
    return model, model_args


def grid_shape(positions: int, aspect: float) -> tuple[int, int]:
    """Rows and columns of a row-major grid of ``positions`` over an image whose height / width is ``aspect``."""
    rows = max(1, round((positions * aspect) ** 0.5))
    return rows, max(1, positions // rows)


# --- the two ways: the model on meta, its features (2, C, L) or (2, C, H, W), and the arguments that build it so


def _unpooled(
    name: str, class_token: bool, model_args: dict[str, Any], images: Tensor
) -> tuple[TimmModel, Tensor, dict[str, Any]] | None:
    try:
        model, model_args = build_unpooled(name, class_token, model_args)
    except AssertionError:  # how timm says that a model cannot do without
        return None
    output = model(images)
    width, prefix_tokens = getattr(model, "head_hidden_size", 0), _prefix_tokens(model)
    if not _is_map(output, width, prefix_tokens, images):
        return None
    return model, _positions(output, width, prefix_tokens), model_args


def _pruned(name: str, model_args: dict[str, Any], images: Tensor) -> tuple[TimmModel, Tensor, dict[str, Any]]:
    model: TimmModel = build_on_meta(name, **model_args)
    try:
        _prune_to_last_stage(model)
        features = _last_stage(model, images)
        is_map = features.ndim == 4 and features[0, 0].numel() > 1
        reason = "" if is_map else f"its last stage is {tuple(features.shape)}"
    except (AttributeError, NotImplementedError, TypeError) as error:
        reason = one_line(error)
    if reason:
        raise NoSpatialMapError(f"{name} has no spatial feature map for a head to attend to ({reason}); use head=gap")
    return model, features, model_args


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


def _is_map(output: Any, width: int, prefix_tokens: int, images: Tensor) -> bool:
    """Whether the output is one map of this width over more than one position of a grid."""
    if not isinstance(output, Tensor):
        return False
    if output.ndim == 4:
        return width in (output.shape[1], output.shape[3]) and output[0].numel() > width
    if output.ndim != 3 or output.shape[2] != width:
        return False
    positions = output.shape[1] - prefix_tokens
    rows, columns = grid_shape(positions, images.shape[2] / images.shape[3])
    return rows * columns == positions > 1


def _positions(output: Tensor, width: int, prefix_tokens: int) -> Tensor:
    """NCHW, NHWC or tokens → (B, C, L)."""
    if output.ndim == 3:
        return output[:, prefix_tokens:].transpose(1, 2)  # (B, T, C) -> (B, C, L)
    if output.shape[1] != width:
        output = output.movedim(3, 1)  # (B, H, W, C) -> (B, C, H, W)
    return output.flatten(2)


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
