"""The model that a configuration or a run directory describes."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from noah_lightning.config.schema import RunConfig
from noah_lightning.errors import WeightsError, one_line
from noah_lightning.models.classifier import create_model
from noah_lightning.run_dir import CHECKPOINTS, CONFIG


def build_model(config: RunConfig) -> nn.Module:
    """The model that a configuration describes.

    Raises:
        UserError: as :func:`create_model`.
    """
    regularization = {"drop_path_rate": config.recipe.drop_path, "proj_drop_rate": config.recipe.block_dropout}
    return create_model(
        name=config.model.name,
        head=config.head.name,
        num_classes=config.data.num_classes,
        pretrained=config.model.pretrained,
        weights=config.model.weights,
        image_size=config.data.image_size,
        class_token=config.model.class_token,
        backbone_init=config.model.init,
        # What a recipe asks of the inside of the model, as timm calls it; models that lack it refuse it.
        model_args={name: rate for name, rate in regularization.items() if rate} | config.model.args,
        **config.head.arguments("name"),
    )


def load_model(run_dir: Path, config: RunConfig, checkpoint: str = "best", ema: bool = False) -> nn.Module:
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
    model = build_model(without_starting_weights(config))
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


def without_starting_weights(config: RunConfig) -> RunConfig:
    """The same architecture without fetching the weights it once started from."""
    model = config.model
    class_token = model.class_token
    if class_token is None and config.head.name != "gap":
        class_token = bool(model.pretrained or model.weights)
    return config.replace("model", pretrained=False, weights=None, class_token=class_token)
