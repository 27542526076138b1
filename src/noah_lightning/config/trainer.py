"""Settings of the trainer, and the number of processes and share of a batch that follow from them."""

import os
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from noah_lightning.config.types import Epochs, Fraction, Group, NonNegativeInt, Positive, PositiveInt
from noah_lightning.errors import ConfigError


def _distinct(values: list[int]) -> list[int]:
    if len(set(values)) < len(values):
        raise ValueError("must be different GPUs, such as [0,1]")
    return values


GPUs = Annotated[list[NonNegativeInt], Field(min_length=1), AfterValidator(_distinct)]
BatchLimit = PositiveInt | Fraction | None  # number or fraction of batches
# Lightning's, except for sharded models, because checkpoints here are not sharded.
Strategy = Literal["auto", "ddp", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters_false"]
TrueOrMixed = Literal["32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true"]
Bits = Literal["32", "bf16", "16", "64", 32, 16, 64]
Precision = Literal[TrueOrMixed, Bits, "transformer-engine", "transformer-engine-float16"]


class TrainerSettings(Group):
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps", "tpu"] = "auto"
    devices: PositiveInt | Literal[-1, "auto"] | GPUs = 1
    num_nodes: PositiveInt = 1
    strategy: Strategy = "auto"
    sync_batchnorm: bool = False
    max_epochs: Epochs
    precision: Precision = "32-true"
    channels_last: bool = False
    compile: bool = False
    nonfinite: Literal["stop", "skip"] = "stop"
    accumulate_grad_batches: PositiveInt = 1
    gradient_clip_val: Positive | None = None
    check_val_every_n_epoch: PositiveInt = 1
    limit_train_batches: BatchLimit = None
    limit_val_batches: BatchLimit = None
    num_sanity_val_steps: Annotated[int, Field(ge=-1)] = 2  # -1: all of them
    log_every_n_steps: PositiveInt = 50
    deterministic: bool | Literal["warn"] = False
    benchmark: bool | None = None


def processes_per_node(trainer: TrainerSettings) -> int:
    """Number of processes on this machine, by ``trainer.devices``."""
    if isinstance(trainer.devices, list):
        return len(trainer.devices)
    if trainer.devices not in ("auto", -1):
        return int(trainer.devices)
    if outside := os.environ.get("LOCAL_WORLD_SIZE"):
        return int(outside)
    if trainer.accelerator not in ("auto", "gpu", "cuda"):
        return 1
    import torch

    return max(1, torch.cuda.device_count())


def batch_per_process(batch: int, trainer: TrainerSettings) -> int:
    """Batch size of each pass of each process, for optimizer steps of ``batch`` images in all.

    Raises:
        ConfigError: the batch cannot be divided equally.
    """
    processes, passes = processes_per_node(trainer) * trainer.num_nodes, trainer.accumulate_grad_batches
    parts = processes * passes
    if batch % parts:
        below = batch - batch % parts
        near = f"{below} or {below + parts}" if below else f"{parts}"
        splits = ((processes, "processes"), (passes, "accumulated passes"))
        over = " × ".join(f"{number} {what}" for number, what in splits if number > 1)
        raise ConfigError(f"recipe.batch_size={batch} cannot be divided among {over}; use {near}")
    return batch // parts
