"""The schema of a run's configuration: each setting with its type, its range and its default.

The defaults are those of the files in ``conf/``, which compose the configuration; they serve Python callers, and runs
recorded before a setting existed. What a setting means is written beside it in ``conf/``.
"""

from collections.abc import Mapping
from contextlib import suppress
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from noah_lightning.config.processes import batch_per_process

PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
Epochs = Annotated[int, Field(ge=1, le=10**6)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
DropRate = Annotated[float, Field(ge=0, lt=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
Fraction = Annotated[float, Field(gt=0, le=1)]
OpenFraction = Annotated[float, Field(gt=0, lt=1)]
Percent = Annotated[float, Field(ge=0, le=100)]
Text = Annotated[str, Field(min_length=1)]
ShortText = Annotated[str, Field(min_length=1, max_length=64)]  # W&B refuses longer tags
Interpolation = Literal["bilinear", "bicubic"]
NoahInit = Literal["official", "lecun", "small"]
# As Lightning has them, without those for sharded models: checkpoints here are whole.
Precision = Literal[
    "32-true",
    "bf16-mixed",
    "16-mixed",
    "bf16-true",
    "16-true",
    "64-true",
    "32",
    "bf16",
    "16",
    "64",
    32,
    16,
    64,
    "transformer-engine",
    "transformer-engine-float16",
]
Strategy = Literal["auto", "ddp", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters_false"]


def _distinct(values: list[int]) -> list[int]:
    if len(set(values)) < len(values):
        raise ValueError("must be different GPUs, such as [0,1]")
    return values


def _rising(values: list[float]) -> list[float]:
    if any(later <= earlier for earlier, later in pairwise(values)):
        raise ValueError("must be rising numbers")
    return values


def _not_falling(values: list[float]) -> list[float]:
    if values[0] > values[1]:  # equal: all crops have one shape
        raise ValueError("must be 2 rising numbers above 0 (width / height)")
    return values


# One number per red, green and blue, on the scale where white is 1.
ChannelMean = Annotated[list[Probability], Field(min_length=3, max_length=3)]
ChannelStd = Annotated[list[Fraction], Field(min_length=3, max_length=3)]
AspectRange = Annotated[list[Positive], Field(min_length=2, max_length=2), AfterValidator(_not_falling)]
Milestones = Annotated[list[NonNegative], AfterValidator(_rising)]
GPUs = Annotated[list[NonNegativeInt], Field(min_length=1), AfterValidator(_distinct)]
Devices = PositiveInt | Literal[-1, "auto"] | GPUs
BatchLimit = PositiveInt | Fraction | None  # a number of batches, or a share of them
# timm's notation; timm itself passes over a part that lacks its number, such as the "inc" of rand-m9-inc.
RandAugment = Annotated[
    str,
    Field(
        title="RandAugment in timm's notation",
        pattern=r"^rand(-(m\d+|n\d+|mstd\d+(\.\d+)?|mmax\d+|p\d+(\.\d+)?|inc\d|w\d+|t\w+))*$",
        examples=["rand-m9-mstd0.5-inc1"],
    ),
]


class Group(BaseModel):
    """Settings that belong together; unknown ones are an error, values are never converted."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, protected_namespaces=())

    def arguments(self, *leave_out: str) -> dict[str, Any]:
        """The settings as plain keyword arguments, without those left out."""
        return self.model_dump(exclude=set(leave_out))


class CheckpointSettings(Group):
    every_n_steps: PositiveInt = 1000
    every_minutes: Positive = 15
    keep: PositiveInt = 2


class OptimizerSettings(Group):
    name: Literal["sgd", "adamw"]
    lr: NonNegative
    lr_batch: PositiveInt | None = None
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
        """Whether there is anything to mix."""
        return self.mixup > 0 or self.cutmix > 0


class AugmentSettings(Group):
    crop_aspect: AspectRange = Field(default_factory=lambda: [3 / 4, 4 / 3])
    interpolation: Literal["bilinear", "bicubic", "random"] = "bilinear"
    rand_augment: RandAugment | None = None
    color_jitter: NonNegative = 0.0
    erasing: Probability = 0.0
    repeats: PositiveInt = 1


class PreprocessSettings(Group):
    mean: ChannelMean = Field(default_factory=lambda: [0.485, 0.456, 0.406])
    std: ChannelStd = Field(default_factory=lambda: [0.229, 0.224, 0.225])
    interpolation: Interpolation = "bilinear"
    crop_ratio: Fraction = 0.875


class RecipeSettings(Group):
    name: Text
    epochs: Epochs
    batch_size: PositiveInt
    optimizer: OptimizerSettings
    schedule: ScheduleSettings
    gradient_clip: Positive | None = None
    ema: OpenFraction | None = None
    label_smoothing: DropRate = 0.0
    head_dropout: DropRate = 0.0
    equal_dropout: bool = False
    drop_path: DropRate = 0.0
    block_dropout: DropRate = 0.0
    mixing: MixingSettings = MixingSettings()
    augment: AugmentSettings = AugmentSettings()
    preprocess: PreprocessSettings = PreprocessSettings()


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
    init: Literal["timm", "official"] = "timm"
    args: dict[str, Any] = Field(default_factory=dict)
    noah: NoahDefaults = NoahDefaults()
    published: Published = Published()


class GapHeadSettings(Group):
    name: Literal["gap"] = "gap"
    dropout: DropRate = 0.0


class NoahHeadSettings(Group):
    name: Literal["noah"] = "noah"
    head_num: PositiveInt = 4
    key_ratio: OpenFraction = 0.5
    dropout: DropRate = 0.0
    head_split: bool = True
    kv_split: bool = True
    init: NoahInit = "official"
    kernel: Literal["auto", "fused", "sliced", "definition"] = "auto"


class PluginHeadSettings(Group):
    """Settings of a head that is not ours: its constructor checks them."""

    model_config = ConfigDict(extra="allow")
    name: Text


class DataSettings(Group):
    """What all data sets share."""

    name: Text
    num_classes: PositiveInt
    mean: ChannelMean
    std: ChannelStd
    image_size: PositiveInt
    batch_size: PositiveInt = 256
    num_workers: NonNegativeInt | None = None
    seed: NonNegativeInt = 0


class PluginDataSettings(DataSettings):
    """Settings of a data set that is not ours: its own ``Settings`` check them."""

    model_config = ConfigDict(extra="allow")


class DigitsSettings(DataSettings):
    name: Literal["digits"] = "digits"
    num_classes: PositiveInt = 10
    mean: ChannelMean = Field(default_factory=lambda: [0.088] * 3)
    std: ChannelStd = Field(default_factory=lambda: [0.228] * 3)
    image_size: PositiveInt = 64
    train_images: PositiveInt = 8000
    val_images: PositiveInt = 2000
    digit_size: Annotated[int, Field(ge=8)] = 24
    num_fragments: NonNegativeInt = 8
    fragment_size: PositiveInt = 8
    num_workers: NonNegativeInt | None = 0

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.digit_size > self.image_size:
            raise ValueError(f"data.digit_size={self.digit_size} must be at most data.image_size={self.image_size}")
        if self.fragment_size > self.digit_size:
            raise ValueError(
                f"data.fragment_size={self.fragment_size} must be at most data.digit_size={self.digit_size}"
            )
        return self


class ImageFolderSettings(DataSettings):
    name: Literal["imagefolder"] = "imagefolder"
    root: str | None = None
    mean: ChannelMean = Field(default_factory=lambda: [0.485, 0.456, 0.406])
    std: ChannelStd = Field(default_factory=lambda: [0.229, 0.224, 0.225])
    image_size: PositiveInt = 224
    crop_ratio: Fraction = 0.875
    interpolation: Interpolation = "bilinear"
    augment: AugmentSettings = AugmentSettings()
    max_unreadable: NonNegativeInt = 0


class ImageNetSettings(ImageFolderSettings):
    name: Literal["imagenet"] = "imagenet"  # type: ignore[assignment]  # another data set, the same kind of files
    num_classes: PositiveInt = 1000
    unpack: bool = False


class PackedSettings(ImageFolderSettings):
    name: Literal["packed"] = "packed"  # type: ignore[assignment]
    mix_shards: NonNegativeInt = 4


class CSVLoggerSettings(Group):
    name: Literal["csv"] = "csv"


class TensorBoardLoggerSettings(Group):
    name: Literal["tensorboard"] = "tensorboard"


class WandbLoggerSettings(Group):
    name: Literal["wandb"] = "wandb"
    project: Text = "noah"
    entity: Text | None = None
    group: Text | None = None
    tags: list[ShortText | int] | None = Field(default_factory=list)
    mode: Literal["online", "offline", "disabled"] | None = None
    picture_every_n_epochs: NonNegativeInt = 10


# The groups of which one of several kinds is chosen by its name.
VARIANTS: dict[str, dict[str, type[Group]]] = {
    "head": {"gap": GapHeadSettings, "noah": NoahHeadSettings},
    "data": {
        "digits": DigitsSettings,
        "imagefolder": ImageFolderSettings,
        "imagenet": ImageNetSettings,
        "packed": PackedSettings,
    },
    "logger": {"csv": CSVLoggerSettings, "tensorboard": TensorBoardLoggerSettings, "wandb": WandbLoggerSettings},
}
# And those of a user's own, whose name is not among them.
PLUGINS: dict[str, type[Group]] = {"head": PluginHeadSettings, "data": PluginDataSettings}
PLUGIN = "plugin"


def _variant(group: str) -> Discriminator:
    def tag(value: Any) -> str:
        name = value.get("name") if isinstance(value, Mapping) else getattr(value, "name", None)
        return name if isinstance(name, str) and name in VARIANTS[group] else PLUGIN

    return Discriminator(tag)


HeadSettings = Annotated[
    Annotated[GapHeadSettings, Tag("gap")]
    | Annotated[NoahHeadSettings, Tag("noah")]
    | Annotated[PluginHeadSettings, Tag(PLUGIN)],
    _variant("head"),
]
AnyDataSettings = Annotated[
    Annotated[DigitsSettings, Tag("digits")]
    | Annotated[ImageFolderSettings, Tag("imagefolder")]
    | Annotated[ImageNetSettings, Tag("imagenet")]
    | Annotated[PackedSettings, Tag("packed")]
    | Annotated[PluginDataSettings, Tag(PLUGIN)],
    _variant("data"),
]
LoggerSettings = Annotated[
    Annotated[CSVLoggerSettings, Tag("csv")]
    | Annotated[TensorBoardLoggerSettings, Tag("tensorboard")]
    | Annotated[WandbLoggerSettings, Tag("wandb")],
    _variant("logger"),
]


class RunConfig(Group):
    """Everything that a run is made from. Groups come in the order in which their mistakes are reported."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    plugins: list[Text] = Field(default_factory=list)
    checkpoint: CheckpointSettings = CheckpointSettings()
    recipe: RecipeSettings
    trainer: TrainerSettings
    model: ModelSettings
    head: HeadSettings
    data: AnyDataSettings
    logger: LoggerSettings = CSVLoggerSettings()

    def replace(self, group: str, **settings: Any) -> Self:
        """A copy with other settings in one group, for our own use: they are not checked."""
        return self.model_copy(update={group: getattr(self, group).model_copy(update=settings)})

    @model_validator(mode="before")
    @classmethod
    def _follow(cls, content: Any) -> Any:
        """What is null because it follows from other settings gets its value."""
        groups = {name: content.get(name) for name in ("recipe", "trainer", "head", "data")}
        if not all(isinstance(group, Mapping) for group in groups.values()):
            return content  # refused below
        recipe, trainer, head, data = groups.values()
        if head.get("name") == "gap" and head.get("dropout", 0) is None:
            head = {**head, "dropout": recipe.get("head_dropout") if recipe.get("equal_dropout") is True else 0.0}
        if data.get("batch_size", 0) is None:
            with suppress(ValidationError):  # reported below, by the group that it is in
                batch = TypeAdapter(PositiveInt).validate_python(recipe.get("batch_size"), strict=True)
                data = {**data, "batch_size": batch_per_process(batch, TrainerSettings.model_validate(trainer))}
        return {**content, "head": head, "data": data}

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        recipe, trainer, schedule = self.recipe, self.trainer, self.recipe.schedule
        if trainer.check_val_every_n_epoch > trainer.max_epochs:
            raise ValueError(
                f"trainer.check_val_every_n_epoch={trainer.check_val_every_n_epoch} must be at most "
                f"trainer.max_epochs={trainer.max_epochs}: the run would never validate"
            )
        if recipe.ema is not None and trainer.precision in ("16-true", "bf16-true"):
            raise ValueError(
                f"recipe.ema moves weights by less than trainer.precision={trainer.precision} can hold; "
                f"use {str(trainer.precision).replace('true', 'mixed')}"
            )
        # The recipe's own epochs count, or the trainer's if they are more: trainer.max_epochs=1 tries a recipe out.
        epochs = max(recipe.epochs, trainer.max_epochs)
        advice = "; trainer.max_epochs alone ends a recipe early" if epochs == recipe.epochs else ""
        if schedule.name == "step" and schedule.milestones[-1] >= epochs:
            raise ValueError(
                f"recipe.schedule.milestones={schedule.milestones} must lie before the end, epoch {epochs}{advice}"
            )
        for key in ("warmup_epochs", "lag"):
            if (value := getattr(schedule, key)) > epochs:
                raise ValueError(f"recipe.schedule.{key}={value:g} must be at most the {epochs} epochs{advice}")
        return self
