"""The model that a configuration or a run directory describes."""

from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError
from torch import nn

from noah_lightning.config.checks import rate
from noah_lightning.config.compose import settings
from noah_lightning.errors import ConfigError, WeightsError, one_line
from noah_lightning.models.classifier import create_model
from noah_lightning.run_dir import CHECKPOINTS, CONFIG


def build_model(config: DictConfig, starting_weights: bool = True) -> nn.Module:
    """The model that a configuration describes, or only its architecture without fetching the weights to start from.

    Raises:
        UserError: as :func:`create_model`.
    """
    try:
        arguments = _model_arguments(config)
    except ConfigAttributeError as error:
        raise ConfigError(f"{error.full_key} is missing: this is the configuration of another version") from error
    if not starting_weights:
        if arguments["class_token"] is None and arguments["head"] != "gap":
            arguments["class_token"] = bool(arguments["pretrained"] or arguments["weights"])
        arguments |= {"pretrained": False, "weights": None}
    return create_model(**arguments)


def _model_arguments(config: DictConfig) -> dict[str, Any]:
    return {
        "name": config.model.name,
        "head": config.head.name,
        "num_classes": config.data.num_classes,
        "pretrained": config.model.pretrained,
        "weights": config.model.weights,
        "image_size": config.data.image_size,
        "class_token": config.model.class_token,
        "backbone_init": config.model.init,
        "model_args": _regularization(config) | settings(config, "model.args"),
        **settings(config, "head", "name"),
    }


def _regularization(config: DictConfig) -> dict[str, float]:
    """What a recipe asks of the inside of the model, as timm calls it; models that lack it refuse it."""
    asked = {
        "drop_path_rate": rate("recipe.drop_path", config.recipe.drop_path),
        "proj_drop_rate": rate("recipe.block_dropout", config.recipe.block_dropout),
    }
    return {name: value for name, value in asked.items() if value}


def load_model(run_dir: Path, config: DictConfig, checkpoint: str = "best", ema: bool = False) -> nn.Module:
    """The run's model with the weights of its ``best`` or ``last`` checkpoint, in evaluation mode.

    With ``ema`` it has the average of the weights instead, and ``best`` is the epoch that was best for the average.

    Raises:
        WeightsError: the checkpoint is missing, unreadable or of another model, or the run has no average.
    """
    if ema and config.recipe.ema is None:
        raise WeightsError(f"{run_dir} has no average of the weights: it was trained with recipe.ema=null")
    name = "best_ema" if ema and checkpoint == "best" else checkpoint
    path = run_dir / CHECKPOINTS / f"{name}.ckpt"
    state = _model_weights(path, "ema.module." if ema else "model.")
    model = build_model(config, starting_weights=False)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise WeightsError(f"{path} is not of the model in {run_dir / CONFIG}: {one_line(error)}") from error
    return model.eval()


def _model_weights(path: Path, prefix: str) -> dict[str, Any]:
    if not path.is_file():
        raise WeightsError(f"there is no checkpoint {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
        return {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
    except Exception as error:  # torch, pickle and zipfile each raise their own
        raise WeightsError(f"{path} cannot be read as a checkpoint: {one_line(error)}") from error
