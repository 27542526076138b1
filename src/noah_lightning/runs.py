"""The run directory: everything that can be known of a run, in plain files.

config.yaml                the resolved configuration
config-until-step-N.yaml   the one before ``noah resume --force`` changed it, if that was done
train.log                  what the console showed
metrics.csv                losses, accuracies and learning rates
checkpoints/best.ckpt      the epoch with the highest validation accuracy
checkpoints/best_ema.ckpt  likewise of the average of the weights, where there is one
checkpoints/last.ckpt      the latest state; until the run has finished it leads to step-<steps>.ckpt
predictions.npz            what the best epoch said of every validation image
nonfinite.json             images of the batch at which a loss was not finite, if one was
results.json               written when training has finished
mistake.txt                the mistake that a job of a sweep ended in at its first go; resumed, it begins anew

Every checkpoint holds the model's weights as ``model.*``, and their average, where there is one, as ``ema.module.*``.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError
from torch import nn

from noah_lightning.checks import is_number, rate
from noah_lightning.config import settings
from noah_lightning.errors import ConfigError, RunFailed, WeightsError, one_line
from noah_lightning.model import create_model
from noah_lightning.run_files import CHECKPOINTS, CONFIG, RESULTS
from noah_lightning.whole_file import write_whole


@dataclass(frozen=True)
class Results:
    """What a finished run came to; accuracies are counts, so that nothing is lost in rounding.

    Those that begin with ``ema`` are of the average of the weights, and None without one.
    """

    parameters: int
    epochs: int
    best_epoch: int  # counted from 1
    correct: int
    correct_top5: int
    images: int
    train_seconds: float
    images_per_second: float  # while training
    peak_memory: int | None = None  # bytes, of the first GPU
    ema_best_epoch: int | None = None
    ema_correct: int | None = None
    ema_correct_top5: int | None = None

    @property
    def top1(self) -> float:
        """Percent."""
        return 100 * self.correct / self.images


def write_config(run_dir: Path, config: DictConfig) -> None:
    """Claim the run directory by writing its configuration.

    Raises:
        ConfigError: the directory holds a run already, or cannot be written.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        with (run_dir / CONFIG).open("x") as file:
            file.write(OmegaConf.to_yaml(config))
    except FileExistsError:
        raise ConfigError(f"{run_dir} holds a run already; give another hydra.run.dir=…") from None
    except OSError as error:
        raise ConfigError(f"{run_dir} cannot be written ({one_line(error)}); give another hydra.run.dir=…") from error


def replace_config(run_dir: Path, config: DictConfig, steps: int) -> None:
    """Let a run have other settings from now on; those it had up to ``steps`` stay beside them.

    Raises:
        ConfigError: the directory cannot be written.
    """
    path, text = run_dir / CONFIG, OmegaConf.to_yaml(config)
    try:
        before = path.read_bytes()
        if before != text.encode():
            write_whole(run_dir / f"config-until-step-{steps:08}.yaml", lambda file: file.write(before))
            write_whole(path, lambda file: file.write(text.encode()))
    except OSError as error:
        raise ConfigError(f"{run_dir} cannot be written ({one_line(error)}); make it writable") from error


def write_results(run_dir: Path, results: Results) -> None:
    """Say that the run has finished, and how.

    Raises:
        RunFailed: the file cannot be written.
    """
    text = json.dumps(asdict(results), indent=2) + "\n"
    try:
        write_whole(run_dir / RESULTS, lambda file: file.write(text.encode()))
    except OSError as error:
        raise RunFailed(
            f"{run_dir / RESULTS} cannot be written ({one_line(error)}); make room, then noah resume {run_dir}"
        ) from error


def read_results(run_dir: Path) -> Results:
    """Results of a finished run.

    Raises:
        ConfigError: the run has not finished.
    """
    try:
        results = Results(**json.loads((run_dir / RESULTS).read_text()))
        for name, value in vars(results).items():
            if not is_number(value) and value is not None:
                raise ValueError(f"{name}={value!r} is no number")
        return results
    except (OSError, RecursionError, TypeError, ValueError) as error:
        raise ConfigError(f"{run_dir} holds no finished run: {one_line(error)}") from error


def build_model(config: DictConfig) -> nn.Module:
    """The model that a configuration describes.

    Raises:
        UserError: as :func:`create_model`.
    """
    try:
        arguments = _model_arguments(config)
    except ConfigAttributeError as error:
        raise ConfigError(f"{error.full_key} is missing: this is the configuration of another version") from error
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
        "model_args": _regularisation(config) | settings(config, "model.args"),
        **settings(config, "head", "name"),
    }


def _regularisation(config: DictConfig) -> dict[str, float]:
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
        WeightsError: no such checkpoint, one that is unreadable or of another model, or a run without an average.
    """
    if ema and OmegaConf.select(config, "recipe.ema") is None:
        raise WeightsError(f"{run_dir} keeps no average of the weights: it was trained with recipe.ema=null")
    name = "best_ema" if ema and checkpoint == "best" else checkpoint
    path = run_dir / CHECKPOINTS / f"{name}.ckpt"
    state = _model_weights(path, "ema.module." if ema else "model.")
    model = build_model(_without_starting_weights(config))
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


def _without_starting_weights(config: DictConfig) -> DictConfig:
    """The same architecture without fetching the weights it once started from."""
    config = config.copy()
    if config.model.class_token is None and config.head.name != "gap":
        config.model.class_token = bool(config.model.pretrained or config.model.weights)
    config.model.pretrained, config.model.weights = False, None
    return config
