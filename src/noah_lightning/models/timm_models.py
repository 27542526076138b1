"""timm's models by name: a user's mistakes in one line, weights from local files, the official starting weights."""

import logging
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import cache
from typing import Any

import timm
import torch
from huggingface_hub import constants
from huggingface_hub.utils import get_session
from timm.models.efficientnet import EfficientNet
from timm.models.mlp_mixer import MlpMixer
from timm.models.resnet import ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.overrides import TorchFunctionMode

from noah_lightning.config.parsing import parse
from noah_lightning.config.plugins import load_installed_plugins
from noah_lightning.config.schema import ModelSettings
from noah_lightning.errors import ConfigError, UnknownModelError, WeightsError, did_you_mean, one_line
from noah_lightning.models.weights import StateDict, Weights, in_order, misfit, read_weights
from noah_lightning.models.zoo.convolutional import MobileNetV3Small, ShuffleNetV2
from noah_lightning.models.zoo.tokens import PyramidVisionTransformer

log = logging.getLogger("noah_lightning")

PATIENCE = 5  # seconds for the source of weights to answer
# The operations in place that torch's and timm's initializers are made of.
_DRAWING = {"normal_", "uniform_", "erfinv_", "clamp_", "mul_", "add_", "fill_", "zero_"}


def build_timm_model(
    name: str,
    num_classes: int,
    pretrained: bool = False,
    weights: str | Weights | None = None,
    image_size: int | None = None,
    init: str = "timm",
    **model_args: Any,
) -> nn.Module:
    """``timm.create_model`` with one-line errors, local weights and the image size fitted.

    Args:
        name: any name of ``timm.list_models()``, with or without a pretrained tag, or ``hf-hub:…``.
        num_classes: 0 leaves the classifier out.
        pretrained: fetch timm's pretrained weights for this name.
        weights: what :func:`~noah_lightning.models.weights.read_weights` reads; instead of ``pretrained``. Every
            backbone weight must be there and fit; the classifier is taken if its class count is the same.
        image_size, init: as of :func:`~noah_lightning.models.classifier.create_model`.
        **model_args: passed on to timm.

    Raises:
        UnknownModelError: timm has no such model.
        WeightsError: weights that cannot be fetched, read or fitted.
        ConfigError: arguments the model does not take.
    """
    if pretrained and weights:
        raise ConfigError("model.pretrained and model.weights are both set; keep one of them")
    _require_known(name)
    parse(ModelSettings, {"name": str(name), "init": init}, "model")
    if image_size is not None and "img_size" not in model_args:
        cfg = _default_cfg(name)
        if cfg.fixed_input_size and cfg.input_size[1:] != (image_size, image_size):
            model_args["img_size"] = image_size
    if weights:
        # timm's own loader then adapts layouts and position embeddings as it does for its own files
        weights = weights if isinstance(weights, Weights) else read_weights(weights)
        overlay = _pretrained_cfg_overlay(weights, name, model_args)
        model: Any = _build(name, num_classes, pretrained=True, pretrained_cfg_overlay=overlay, **model_args)
        model.pretrained_cfg["state_dict"] = None  # or the weights would stay in memory twice
        return model
    if pretrained:
        try:
            return _build(name, num_classes, pretrained=True, **model_args)
        except (OSError, RuntimeError) as error:  # no network, no such file on the hub, no weights for this name
            raise WeightsError(
                f"pretrained weights of {name} are not available ({one_line(error)}); "
                "set model.weights=FILE, or model.pretrained=false"
            ) from error
    model = _build(name, num_classes, **model_args)
    if init == "official":
        _start_officially(model)
    return model


def default_image_size(name: str) -> tuple[int, int]:
    """Height and width in pixels that the model is made for."""
    return tuple(_default_cfg(name).input_size[1:])


def default_num_classes(name: str) -> int:
    """Number of classes that the pretrained weights have; 0 without a classifier."""
    return int(_default_cfg(name).num_classes)


def build_on_meta(name: str, num_classes: int = 0, **model_args: Any) -> nn.Module:
    """The same model without memory behind its weights: cheap to build, to run and to look at."""
    with torch.device("meta"):
        return _build(name, num_classes, **model_args)


class _WithoutStartingWeights(TorchFunctionMode):
    """Leaves out drawing the weights of a model on ``meta``, which takes half of its building."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        skipped = getattr(func, "__name__", "") in _DRAWING and args and args[0].is_meta
        return args[0] if skipped else func(*args, **(kwargs or {}))


def _build(name: str, num_classes: int, **model_args: Any) -> nn.Module:
    _require_known(name)
    try:
        from_timm = "pretrained" in model_args and "pretrained_cfg_overlay" not in model_args
        remote = (from_timm or ":" in name) and not name.startswith("local-dir:")
        with _WithoutStartingWeights(), _network(name) if remote else nullcontext():
            return timm.create_model(name, num_classes=num_classes, **model_args)
    except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
        # timm does not check the arguments: any of these can be what comes of a wrong one
        raise ConfigError(f"{name} cannot be built with {sorted(model_args)}: {one_line(error)}") from error
    except OSError as error:
        if ":" not in name:  # then it is about the weights, not about the model
            raise
        raise UnknownModelError(
            f"{name} is not available ({one_line(error)}); set model.name=ARCHITECTURE model.weights=FILE"
        ) from error


@contextmanager
def _network(name: str) -> Iterator[None]:
    """While timm may download: what is silent is not asked again, and the hub's cache is used instead.

    The hub's client would retry for a minute, and torch's would wait without limit.
    """
    cfg = None if ":" in name else timm.get_pretrained_cfg(name)
    source = constants.ENDPOINT if cfg is None or cfg.hf_hub_id else cfg.url
    offline, timeout = constants.HF_HUB_OFFLINE, socket.getdefaulttimeout()
    silent = False
    try:
        if source and not offline:
            _ask(source, name)
    except Exception:  # of one of the HTTP clients that the hub's has had
        silent = constants.HF_HUB_OFFLINE = True
    socket.setdefaulttimeout(PATIENCE)
    try:
        yield
    except OSError as error:
        if silent:
            raise OSError(f"{source} does not answer, and the cache has no copy") from error
        raise
    finally:
        constants.HF_HUB_OFFLINE = offline
        socket.setdefaulttimeout(timeout)


@cache  # an answer is remembered; silence, being an exception, is not
def _ask(source: str, name: str) -> None:
    log.info("weights  looking for %s at %s", name, source)
    get_session().head(source, timeout=PATIENCE)


def _default_cfg(name: str) -> Any:
    _require_known(name)
    cfg = timm.get_pretrained_cfg(name)
    if cfg is None:  # an hf-hub: or local-dir: model, or an old name of a renamed one: the model itself knows
        cfg = timm.models.PretrainedCfg(**getattr(build_on_meta(name), "pretrained_cfg", {}))
    return cfg


def _require_known(name: str) -> None:
    architecture = str(name).partition(".")[0]
    if ":" in architecture:  # of a hub or a local directory
        return
    if not timm.is_model(architecture):
        load_installed_plugins()
    if not timm.is_model(architecture):
        raise UnknownModelError(
            f"timm {timm.__version__} has no model {name!r}{did_you_mean(architecture, timm.list_models())}"
        )
    try:
        timm.get_pretrained_cfg(str(name))
    except RuntimeError as error:  # a known model, an unknown tag
        tagged = timm.list_pretrained(f"{architecture}.*")
        raise UnknownModelError(f"timm {timm.__version__} has no {name!r}{did_you_mean(name, tagged)}") from error


# --- weights from a local file


def _pretrained_cfg_overlay(weights: Weights, name: str, model_args: dict[str, Any]) -> dict[str, Any]:
    """What makes timm load the weights, once they are known to be complete for the backbone ``name``.

    timm loads leniently as soon as the class counts differ, so a file for another model could pass in silence.
    Loading the backbone alone, strictly, into a model without memory catches that before anything is built.
    """
    model = build_on_meta(name, 1, **model_args)  # first: arguments it does not take are not the file's fault
    classifiers = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    classifiers = {classifiers} if isinstance(classifiers, str) else {*classifiers}
    state, target = weights.backbone, model.state_dict()
    try:
        return _checked(state, classifiers, name, model_args)
    except Exception as error:  # each of timm's adapters fails on another model's file in its own way
        cause = error.__cause__ if isinstance(error, ConfigError) and error.__cause__ else error
    if matched := in_order(state, target, classifiers):
        with suppress(Exception):
            overlay = _checked(matched, classifiers, name, model_args)
            weights.by_order = True
            return overlay
    raise WeightsError(f"{weights.path} does not fit {name}: {misfit(cause, state, target)}") from cause


def _checked(state: StateDict, classifiers: set[str], name: str, model_args: dict[str, Any]) -> dict[str, Any]:
    final = {f"{classifier}.{kind}" for classifier in classifiers for kind in ("weight", "bias")}
    shapes = {key: tensor.to("meta") for key, tensor in state.items()}  # which suffice
    backbone = {key: tensor for key, tensor in shapes.items() if key not in final}
    if not backbone:  # timm would take no weights for none given, and fetch its own
        raise ValueError("it holds a classifier and no backbone")
    try:
        overlay = {"state_dict": backbone, "num_classes": 0}
        build_on_meta(name, pretrained=True, pretrained_cfg_overlay=overlay, **model_args)
        num_classes = next((len(state[key]) for key in final if key in state), 0)
    except Exception:  # perhaps the classifier, which comes last, has another name, which timm's adapter knows
        with suppress(Exception):
            num_classes = next(reversed(shapes.values())).numel()
            overlay = {"state_dict": shapes, "num_classes": num_classes}
            build_on_meta(name, num_classes, pretrained=True, pretrained_cfg_overlay=overlay, **model_args)
            return {"state_dict": dict(state), "num_classes": num_classes}
        raise
    return {"state_dict": dict(state), "num_classes": num_classes}


# --- how the official code of NOAH starts its backbones, where that differs from timm's way


def _start_officially(model: nn.Module) -> None:
    """Draw the starting weights of a model of the paper by the official rule, its own classifier included."""
    if isinstance(model, ResNet | EfficientNet | MobileNetV3Small):
        for module in model.modules():  # depthwise convolutions and the last norms of residual branches too
            if isinstance(module, nn.BatchNorm2d):
                nn.init.ones_(module.weight)
            elif isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
            else:
                continue
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    elif isinstance(model, VisionTransformer):  # the linear layers and the position embedding are timm's already
        if model.cls_token is not None:
            nn.init.trunc_normal_(model.cls_token, std=0.02)
    elif not isinstance(model, ShuffleNetV2 | PyramidVisionTransformer | MlpMixer):  # which start officially anyway
        raise ConfigError(
            f"model.init=official is known for the paper's models, not for {type(model).__name__}; "
            "use model.init=timm"
        )
