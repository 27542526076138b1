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
from contextlib import suppress
from typing import Any

import torch
from timm.layers import to_2tuple
from torch import Tensor, nn

from noah_lightning.errors import HeadSettingError, NoSpatialMapError, one_line
from noah_lightning.models.timm_models import build_on_meta, build_timm_model, default_image_size
from noah_lightning.models.weights import Weights, read_weights

TimmModel = Any  # an nn.Module with the methods and attributes that all of timm's models share


class FeatureMapBackbone(nn.Module):
    """A timm model that maps images (B, 3, H, W) to features (B, C, L), positions in row-major order.

    Attributes:
        out_channels: C.
    """

    def __init__(self, model: TimmModel, last_stage: bool = False) -> None:
        super().__init__()
        self.model: TimmModel = model
        self.last_stage = last_stage
        if last_stage:  # without what comes after it, such as VGG's 119 M parameters of pooled layers
            model.prune_intermediate_layers(1)
        elif hasattr(model, "reset_classifier"):  # timm's pure encoders have neither classifier nor pooling
            model.reset_classifier(0, "")
        self.out_channels: int = getattr(model, "head_hidden_size", 0)

    def forward(self, images: Tensor) -> Tensor:
        return self.positions(self.output(images))

    def with_class_token(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The features (B, C, L) and the class token (B, C)."""
        output = self.output(images)
        return self.positions(output), output[:, 0]

    def output(self, images: Tensor) -> Any:
        """What the model returns: a map (B, C, H, W) or (B, H, W, C), tokens (B, T, C), or something else."""
        if not self.last_stage:
            return self.model(images)
        options = {"norm": True, "output_fmt": "NCHW", "intermediates_only": True}
        return self.model.forward_intermediates(images, indices=1, **options)[-1]

    def positions(self, output: Tensor) -> Tensor:
        """The output as features (B, C, L)."""
        return as_positions(output, self.out_channels, self.prefix_tokens)

    @property
    def prefix_tokens(self) -> int:
        return getattr(self.model, "num_prefix_tokens", None) or 0

    def no_weight_decay(self) -> set[str]:
        """Parameters that the model's authors do not decay, such as position embeddings."""
        spared = getattr(self.model, "no_weight_decay", set)
        return {f"model.{name}" for name in spared()}


def as_positions(output: Tensor, channels: int, prefix_tokens: int) -> Tensor:
    """A map (B, C, H, W) or (B, H, W, C), or tokens (B, T, C), less the prefix tokens, as (B, C, L)."""
    if output.ndim == 3:
        return output[:, prefix_tokens:].transpose(1, 2)  # (B, T, C) -> (B, C, L)
    if output.shape[1] != channels:
        output = output.movedim(3, 1)  # (B, H, W, C) -> (B, C, H, W)
    return output.flatten(2)


def make_backbone(
    name: str,
    pretrained: bool = False,
    weights: str | Weights | None = None,
    image_size: int | None = None,
    class_token: bool | None = None,
    init: str = "timm",
    reads_class_token: bool = False,
    **model_args: Any,
) -> FeatureMapBackbone:
    """Build timm's ``name`` as a feature map; arguments as of :func:`build_timm_model`.

    ``class_token`` says whether a ViT that can do without keeps its class token. By default it does only where
    loaded weights were trained with it: a head over the map does not read it, and the paper's ViTs have none.
    ``reads_class_token`` says that the head does. Parameters that what it reads does not depend on, such as the norm
    of a dropped class token, are frozen.

    Raises:
        NoSpatialMapError: the model has no map over positions.
        HeadSettingError: the model has no class token, which the head reads.
        UnknownModelError, WeightsError, ConfigError: as :func:`build_timm_model`.
    """
    if weights and not isinstance(weights, Weights):
        weights = read_weights(weights)
    if class_token is None:
        class_token = reads_class_token or (weights.class_token if weights else pretrained)
    with torch.enable_grad():
        on_meta, output, model_args = _find_map(name, class_token, model_args)
        read = output if reads_class_token else on_meta.positions(output)
    if reads_class_token and getattr(on_meta.model, "cls_token", None) is None:
        raise HeadSettingError(
            f"{name} has no class token for the head to read; use head=avg, or a ViT with its token"
        )
    used = _parameters_behind(read)
    if weights and weights.of_classifier and on_meta.last_stage:  # its later layers were pruned, and will be here too
        kept, every = on_meta.model.state_dict(), build_on_meta(name, **model_args).state_dict()
        weights.fill({key: torch.zeros(tensor.shape) for key, tensor in every.items() if key not in kept})
    # Pooling goes after the weights have come: where it decides the name of the last norm, both must agree.
    model = build_timm_model(name, 0, pretrained, weights, image_size, init, **model_args)
    backbone = FeatureMapBackbone(model, on_meta.last_stage)
    backbone.out_channels = on_meta.out_channels
    for key, parameter in on_meta.named_parameters():
        if parameter not in used:
            backbone.get_parameter(key).requires_grad_(False)
    return backbone


def without_class_token(model: TimmModel, model_args: dict[str, Any]) -> dict[str, Any]:
    """Arguments that build ``model`` without its class token, if it has one and can do without."""
    has_token = getattr(model, "cls_token", None) is not None
    if has_token and "class_token" in inspect.signature(type(model)).parameters:
        return {**model_args, "class_token": False, "global_pool": ""}  # no token, no pooling by token
    return model_args


def grid_shape(positions: int, aspect: float) -> tuple[int, int]:
    """Rows and columns of a row-major grid of ``positions`` over an image whose height / width is ``aspect``."""
    rows = max(1, round((positions * aspect) ** 0.5))
    return rows, max(1, positions // rows)


def _find_map(
    name: str, class_token: bool, model_args: dict[str, Any]
) -> tuple[FeatureMapBackbone, Tensor, dict[str, Any]]:
    """The backbone on ``meta``, its output for two images, and the arguments that build its model."""
    size = to_2tuple(model_args.get("img_size") or default_image_size(name))
    images = torch.empty(2, 3, *size, device="meta")
    model = build_on_meta(name, **model_args)
    unpooled_args = model_args if class_token else without_class_token(model, model_args)
    if unpooled_args is not model_args:
        model = build_on_meta(name, **unpooled_args)
    aspect = size[0] / size[1]
    with suppress(AssertionError):  # how timm says that a model cannot do without pooling
        backbone = FeatureMapBackbone(model)
        output = backbone.output(images)
        if _is_map(output, backbone, aspect):
            return backbone, output, unpooled_args
    try:
        backbone = FeatureMapBackbone(build_on_meta(name, **model_args), last_stage=True)
        output = backbone.output(images)
        backbone.out_channels = output.shape[1]
        if _is_map(output, backbone, aspect):
            return backbone, output, model_args
        reason = f"its last stage is {tuple(output.shape)}"
    except (AttributeError, NotImplementedError, TypeError) as error:
        reason = one_line(error)
    raise NoSpatialMapError(f"{name} has no spatial feature map for a head to attend to ({reason}); use head=gap")


def _is_map(output: Any, backbone: FeatureMapBackbone, aspect: float) -> bool:
    """Whether the output is one map of the backbone's width over more than one position of a grid."""
    width = backbone.out_channels
    if isinstance(output, Tensor) and output.ndim == 4:
        return width in (output.shape[1], output.shape[3]) and output[0].numel() > width
    if not isinstance(output, Tensor) or output.ndim != 3 or output.shape[2] != width:
        return False
    positions = output.shape[1] - backbone.prefix_tokens
    rows, columns = grid_shape(positions, aspect)
    return rows * columns == positions > 1


def _parameters_behind(features: Tensor) -> set[Tensor]:
    """Parameters that the autograd graph of the features reaches; a backward pass would take five times as long."""
    used: set[Tensor] = set()
    seen: set[Any] = {None}
    ahead: list[Any] = [features.grad_fn]
    while ahead:
        node = ahead.pop()
        if node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):  # where a gradient would be accumulated
            used.add(node.variable)
        ahead += [following for following, _ in node.next_functions]
    return used
