"""Weights of a timm model from a local file: read safely, fitted strictly."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from timm.models import load_state_dict
from torch import Tensor, nn

from noah_lightning.errors import WeightsError, one_line

StateDict = dict[str, Tensor]


def read_weights(path: str | Path) -> StateDict:
    """State dict from a ``.safetensors`` or ``torch.save`` file; nothing in the file is executed.

    Raises:
        WeightsError: no such file, or no weights in it.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise WeightsError(f"no weights file at {path}")
    try:
        state = load_state_dict(str(path), weights_only=True)
    except Exception as error:  # torch, pickle, zipfile and safetensors each raise their own
        raise WeightsError(f"{path} cannot be read as model weights: {one_line(error)}") from error
    if not state or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise WeightsError(f"{path} holds no model weights; a state dict is needed, bare or under 'state_dict'")
    return state


def checked_weights(
    state: StateDict, path: str | Path, name: str, build_on_meta: Callable[..., nn.Module]
) -> dict[str, Any]:
    """Make sure ``state`` is a complete set of weights for the backbone ``name``.

    timm loads leniently as soon as the class counts differ, so a file for another model could pass in silence.
    Loading the backbone alone, strictly, into a model without memory catches that before anything is built.

    Args:
        state: the weights.
        path: where they come from, for the message.
        name: the timm model that is to take them.
        build_on_meta: builds that model without memory and without classifier, given more arguments for timm.

    Returns:
        What timm's ``pretrained_cfg_overlay`` takes; timm drops the classifier if the class count differs.

    Raises:
        WeightsError: a missing, left-over or misshapen weight, with the first names.
    """
    model = build_on_meta()  # first, as arguments that the model does not take are no fault of the file
    classifiers = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    names = (classifiers,) if isinstance(classifiers, str) else classifiers
    final = [f"{classifier}.{kind}" for classifier in names for kind in ("weight", "bias")]
    num_classes = next((len(state[key]) for key in final if key in state), 0)
    backbone = {key: tensor.to("meta") for key, tensor in state.items() if key not in final}  # shapes suffice
    if not backbone:  # timm would take no weights for none given, and fetch its own
        raise WeightsError(f"{path} does not fit {name}: it holds a classifier and no backbone")
    try:
        build_on_meta(pretrained=True, pretrained_cfg_overlay={"state_dict": backbone, "num_classes": 0})
    except Exception as error:  # each of timm's adapters trips over a foreign file in its own way
        raise WeightsError(f"{path} does not fit {name}: {one_line(error)}") from error
    return {"state_dict": dict(state), "num_classes": num_classes}
