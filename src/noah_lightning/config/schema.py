"""Schema of a run's configuration: type, range and default of each setting.

The defaults are the same as in ``conf/``; they serve Python callers, and runs that were recorded before a setting
existed. Comments in ``conf/`` explain the settings.
"""

import os
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from noah_lightning.config.choices import (
    AnyDataSettings,
    AugmentSettings,
    ChannelMean,
    ChannelStd,
    CSVLoggerSettings,
    DropRate,
    Epochs,
    FocusingPower,
    Fraction,
    Group,
    Interpolation,
    LoggerSettings,
    Milestones,
    NoahInit,
    NonNegative,
    NonNegativeInt,
    OpenFraction,
    Percent,
    Positive,
    PositiveInt,
    Probability,
    Text,
)
from noah_lightning.config.heads import GapHeadSettings, HeadSettings
from noah_lightning.config.parsing import chosen_class, group_classes, name_in, shown
from noah_lightning.errors import ConfigError


class CheckpointSettings(Group):
    every_n_steps: PositiveInt = 1000
    every_minutes: Positive = 15
    keep: PositiveInt = 2


class AttentionSettings(Group):
    curve_images: Annotated[int, Field(ge=0, le=1024)] = 64  # they stay in memory
    picture_every_n_epochs: NonNegativeInt = 10
    picture_images: Annotated[int, Field(ge=1, le=32)] = 6  # matplotlib draws at most 65,536 pixels


class OptimizerSettings(Group):
    name: Literal["sgd", "adamw", "lars"]
    lr: NonNegative
    lr_batch: PositiveInt | None = None
    lr_choices: list[Positive] = Field(default_factory=list)
    weight_decay: NonNegative = 0.0
    decay: Literal["all", "matrices"] = "all"
    options: dict[str, Any] = Field(default_factory=dict)


class ScheduleSettings(Group):
    name: Literal["constant", "step", "cosine", "linear"] = "constant"
    per: Literal["epoch", "step"] = "epoch"
    lag: NonNegative = 0
    warmup_epochs: NonNegative = 0
    warmup_lr: NonNegative = 0.0
    final_lr: NonNegative = 0.0
    milestones: Milestones = Field(default_factory=list)
    gamma: NonNegative = 0.1

    @model_validator(mode="after")
    def _has_milestones(self) -> Self:
        if self.name == "step" and not self.milestones:
            raise ValueError("recipe.schedule.milestones=[] must be rising epochs, at least one")
        return self


class MixingSettings(Group):
    mixup: NonNegative = 0.0
    cutmix: NonNegative = 0.0
    switch: Probability = 0.5

    @property
    def on(self) -> bool:
        """Whether batches are mixed at all."""
        return self.mixup > 0 or self.cutmix > 0


class PreprocessSettings(Group):
    mean: ChannelMean = Field(default_factory=lambda: [0.485, 0.456, 0.406])
    std: ChannelStd = Field(default_factory=lambda: [0.229, 0.224, 0.225])
    interpolation: Interpolation = "bilinear"
    crop_ratio: Fraction = 0.875


class AsymmetricSettings(Group):
    gamma_neg: FocusingPower = 4.0
    gamma_pos: FocusingPower = 0.0
    clip: DropRate = 0.05


class RecipeSettings(Group):
    name: Text
    epochs: Epochs
    batch_size: PositiveInt
    optimizer: OptimizerSettings
    schedule: ScheduleSettings
    gradient_clip: Positive | None = None
    loss: Literal["cross_entropy", "bce", "asymmetric"] = "cross_entropy"
    asymmetric: AsymmetricSettings = AsymmetricSettings()
    ema: OpenFraction | None = None
    label_smoothing: DropRate = 0.0
    head_dropout: DropRate = 0.0
    equal_dropout: bool = False
    head_batch_norm: bool = False
    drop_path: DropRate = 0.0
    block_dropout: DropRate = 0.0
    mixing: MixingSettings = MixingSettings()
    augment: AugmentSettings = AugmentSettings()
    preprocess: PreprocessSettings = PreprocessSettings()

    @model_validator(mode="after")
    def _loss_takes_targets(self) -> Self:
        if self.loss == "cross_entropy":
            return self
        for key, on in (("label_smoothing=0", self.label_smoothing > 0), ("mixing", self.mixing.on)):
            if on:
                off = "recipe.mixing.mixup=0 recipe.mixing.cutmix=0" if key == "mixing" else f"recipe.{key}"
                raise ValueError(f"recipe.loss={self.loss} needs multi-label targets as they are; set {off}")
        return self


def _distinct(values: list[int]) -> list[int]:
    if len(set(values)) < len(values):
        raise ValueError("must be different GPUs, such as [0,1]")
    return values


GPUs = Annotated[list[NonNegativeInt], Field(min_length=1), AfterValidator(_distinct)]
Devices = PositiveInt | Literal[-1, "auto"] | GPUs
BatchLimit = PositiveInt | Fraction | None  # number or fraction of batches
# Lightning's, except for sharded models, because checkpoints here are not sharded.
Strategy = Literal["auto", "ddp", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters_false"]
TrueOrMixed = Literal["32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true"]
Bits = Literal["32", "bf16", "16", "64", 32, 16, 64]
Precision = Literal[TrueOrMixed, Bits, "transformer-engine", "transformer-engine-float16"]


class TrainerSettings(Group):
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps", "tpu"] = "auto"
    devices: Devices = 1
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


class NoahDefaults(Group):
    head_num: PositiveInt = 4
    key_ratio: OpenFraction = 0.5
    init: NoahInit = "official"


class Published(Group):
    gap: Percent | None = None
    noah: Percent | None = None


class ModelSettings(Group):
    name: Text
    pretrained: bool = False
    weights: Text | None = None
    class_token: bool | None = None
    freeze: bool = False
    init: Literal["timm", "official"] = "timm"
    args: dict[str, Any] = Field(default_factory=dict)
    noah: NoahDefaults = NoahDefaults()
    published: Published = Published()


class RunConfig(Group):
    """Complete configuration of a run; mistakes are reported in the order of the groups."""

    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0
    plugins: list[Text] = Field(default_factory=list)
    checkpoint: CheckpointSettings = CheckpointSettings()
    attention: AttentionSettings = AttentionSettings()
    recipe: RecipeSettings
    trainer: TrainerSettings
    model: ModelSettings
    head: HeadSettings
    data: AnyDataSettings
    logger: LoggerSettings = CSVLoggerSettings()

    def replace(self, group: str, **settings: Any) -> Self:
        """A copy with other settings in one group, which are not checked."""
        return self.model_copy(update={group: getattr(self, group).model_copy(update=settings)})

    @field_validator("head", "data", "logger", mode="before")
    @classmethod
    def _choose_class(cls, given: Any, info: ValidationInfo) -> Any:
        """Parse with the class of the given name, after filling in what is null because it follows from others."""
        recipe, trainer = info.data.get("recipe"), info.data.get("trainer")
        if isinstance(given, Mapping) and recipe and trainer:  # otherwise these are rejected
            if info.field_name == "head" and given.get("dropout", 0) is None:
                given = {**given, "dropout": recipe.head_dropout if recipe.equal_dropout else 0.0}
            if info.field_name == "data" and given.get("batch_size", 0) is None:
                given = {**given, "batch_size": batch_per_process(recipe.batch_size, trainer)}
        field = cls.model_fields[str(info.field_name)]
        chosen = chosen_class(field, given)
        if chosen is None:
            names = ", ".join(kind.model_fields["name"].default for kind in group_classes(field))
            raise ValueError(f"{info.field_name}.name={shown(name_in(given))} must be one of {names}")
        return chosen.model_validate(given)

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        recipe, trainer, schedule = self.recipe, self.trainer, self.recipe.schedule
        if trainer.check_val_every_n_epoch > trainer.max_epochs:
            raise ValueError(
                f"trainer.check_val_every_n_epoch={trainer.check_val_every_n_epoch} must be at most "
                f"trainer.max_epochs={trainer.max_epochs}: the run would never validate"
            )
        if self.model.freeze and isinstance(self.head, GapHeadSettings) and self.head.dropout:
            raise ValueError("head=gap has no dropout while model.freeze=true; use head=avg, which has")
        if recipe.ema is not None and trainer.precision in ("16-true", "bf16-true"):
            raise ValueError(
                f"recipe.ema moves weights by less than trainer.precision={trainer.precision} can hold; "
                f"use {str(trainer.precision).replace('true', 'mixed')}"
            )
        # Compared with the recipe's epochs too, so that trainer.max_epochs=1 can try out a recipe.
        epochs = max(recipe.epochs, trainer.max_epochs)
        advice = "; trainer.max_epochs alone ends a recipe early" if epochs == recipe.epochs else ""
        if schedule.name == "step" and schedule.milestones[-1] >= epochs:
            raise ValueError(
                f"recipe.schedule.milestones={schedule.milestones} must be before the end, epoch {epochs}{advice}"
            )
        for key in ("warmup_epochs", "lag"):
            if (value := getattr(schedule, key)) > epochs:
                raise ValueError(f"recipe.schedule.{key}={value:g} must be at most the {epochs} epochs{advice}")
        return self


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
    """Batch size of each pass of each process; raises ConfigError if ``batch`` cannot be divided equally."""
    processes, passes = processes_per_node(trainer) * trainer.num_nodes, trainer.accumulate_grad_batches
    parts = processes * passes
    if batch % parts:
        below = batch - batch % parts
        near = f"{below} or {below + parts}" if below else f"{parts}"
        splits = ((processes, "processes"), (passes, "accumulated passes"))
        over = " × ".join(f"{number} {what}" for number, what in splits if number > 1)
        raise ConfigError(f"recipe.batch_size={batch} cannot be divided among {over}; use {near}")
    return batch // parts
