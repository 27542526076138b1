"""timm's models by name, with a user's mistakes told in one line."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import timm
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

import noah_lightning.models.zoo  # noqa: F401  # registers the paper's own architectures
from noah_lightning.config.plugins import load_installed_plugins
from noah_lightning.errors import ConfigError, UnknownModelError, WeightsError, did_you_mean, one_line
from noah_lightning.models.official_init import start_officially
from noah_lightning.models.weights import checked_weights, read_weights

# The operations in place that torch's and timm's initialisers are made of.
_DRAWING = {"normal_", "uniform_", "erfinv_", "clamp_", "mul_", "add_", "fill_", "zero_"}


def build_timm_model(
    name: str,
    num_classes: int,
    pretrained: bool = False,
    weights: str | None = None,
    image_size: int | None = None,
    init: str = "timm",
    **model_args: Any,
) -> nn.Module:
    """``timm.create_model`` with one-line errors, local weights and the image size fitted.

    Args:
        name: any name of ``timm.list_models()``, with or without a pretrained tag, or ``hf-hub:…``.
        num_classes: 0 leaves the classifier out.
        pretrained: fetch timm's pretrained weights for this name.
        weights: a local ``.safetensors`` or ``torch.save`` file in timm's layout; instead of ``pretrained``. Every
            backbone weight must be there and fit; the classifier is taken if its class count is the same.
        image_size: side of the square images to come, in pixels; models with a fixed input size are built for it.
        init: rule of the starting weights where none are loaded: ``timm``, or ``official`` for the paper's models.
        **model_args: passed on to timm.

    Raises:
        UnknownModelError: timm has no such model.
        WeightsError: weights that cannot be had, read or fitted.
        ConfigError: arguments the model does not take.
    """
    if pretrained and weights:
        raise ConfigError("model.pretrained and model.weights are both set; keep one of them")
    if init not in ("timm", "official"):
        raise ConfigError(f"model.init={init!r} must be timm or official")
    _require_known(name)
    model_args |= _fit_image_size(name, image_size, model_args)
    if weights:
        checked = checked_weights(read_weights(weights), weights, name, partial(build_on_meta, name, **model_args))
        # timm's own loader then adapts layouts and position embeddings as it does for its own files
        model_args |= {"pretrained": True, "pretrained_cfg_overlay": checked}
    elif pretrained:
        return _build_pretrained(name, num_classes, model_args)
    model = _build(name, num_classes, model_args)
    if init == "official" and not weights:
        start_officially(model)
    return model


def default_image_size(name: str) -> tuple[int, int]:
    """Height and width in pixels that the model is made for."""
    return tuple(_default_cfg(name).input_size[1:])


def build_on_meta(name: str, num_classes: int = 0, **model_args: Any) -> nn.Module:
    """The same model without memory behind its weights: cheap to build, to run and to look at."""
    with torch.device("meta"), _WithoutStartingWeights():
        return _build(name, num_classes, model_args)


class _WithoutStartingWeights(TorchFunctionMode):
    """Leaves out drawing the weights of a model that has no memory for them, which takes half of its building."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") in _DRAWING and args and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))


def _build(name: str, num_classes: int, model_args: dict[str, Any]) -> nn.Module:
    _require_known(name)
    try:
        return timm.create_model(name, num_classes=num_classes, **model_args)
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
    ) as error:  # args go unseen
        raise ConfigError(f"{name} cannot be built with {sorted(model_args)}: {one_line(error)}") from error
    except OSError as error:
        if ":" not in name:  # then it is about the weights, not about the model
            raise
        raise UnknownModelError(f"{name} is not to be had: {one_line(error)}") from error


def _build_pretrained(name: str, num_classes: int, model_args: dict[str, Any]) -> nn.Module:
    try:
        return _build(name, num_classes, {"pretrained": True, **model_args})
    except (OSError, RuntimeError) as error:  # no network, no such file on the hub, no weights for this name
        advice = "set model.weights=/path/to/file, or model.pretrained=false"
        raise WeightsError(f"pretrained weights of {name} are not to be had ({one_line(error)}); {advice}") from error


def _default_cfg(name: str) -> Any:
    _require_known(name)
    cfg = timm.get_pretrained_cfg(name)
    if cfg is None:  # an hf-hub: or local-dir: model, or an old name of a renamed one: the model itself tells
        cfg = timm.models.PretrainedCfg(**getattr(build_on_meta(name), "pretrained_cfg", {}))
    return cfg


def _fit_image_size(name: str, image_size: int | None, model_args: dict[str, Any]) -> dict[str, Any]:
    """``img_size`` for a model with a fixed input size that the coming images would not have."""
    if image_size is None or "img_size" in model_args:
        return {}
    cfg = _default_cfg(name)
    return {"img_size": image_size} if cfg.fixed_input_size and cfg.input_size[1:] != (image_size,) * 2 else {}


def _require_known(name: str) -> None:
    architecture = str(name).partition(".")[0]
    if ":" not in str(name) and not timm.is_model(architecture):
        load_installed_plugins()
    if ":" not in str(name) and not timm.is_model(architecture):
        raise UnknownModelError(
            f"timm {timm.__version__} has no model {name!r}{did_you_mean(architecture, timm.list_models())}"
        )
    try:
        timm.get_pretrained_cfg(str(name))
    except RuntimeError as error:  # a known model, an unknown tag
        tagged = timm.list_pretrained(f"{architecture}.*")
        raise UnknownModelError(f"timm {timm.__version__} has no {name!r}{did_you_mean(name, tagged)}") from error
