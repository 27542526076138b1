"""Types of settings with their ranges, and the settings of data sets and loggers, each chosen by its name.

Messages and documentation are derived from the types.
"""

from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
Epochs = Annotated[int, Field(ge=1, le=10**6)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
DropRate = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
Fraction = Annotated[float, Field(gt=0, le=1)]
OpenFraction = Annotated[float, Field(gt=0, lt=1)]
Percent = Annotated[float, Field(ge=0, le=100)]
Text = Annotated[str, Field(min_length=1)]
ShortText = Annotated[str, Field(min_length=1, max_length=64)]  # maximum of W&B tags
Interpolation = Literal["bilinear", "bicubic"]
NoahInit = Literal["official", "lecun", "small", "average"]


def _rising(values: list[float]) -> list[float]:
    if any(later <= earlier for earlier, later in pairwise(values)):
        raise ValueError("must be rising numbers")
    return values


def _not_falling(values: list[float]) -> list[float]:
    if values[0] > values[1]:  # equal values: a fixed shape
        raise ValueError("must be 2 rising numbers above 0 (width / height)")
    return values


def _zero_or_one_and_more(value: float) -> float:
    if 0 < value < 1:  # the gradient of a power below 1 is infinite at 0
        raise ValueError("must be 0, or a number of at least 1")
    return value


# RGB, with white as 1.
ChannelMean = Annotated[list[Probability], Field(min_length=3, max_length=3)]
ChannelStd = Annotated[list[Fraction], Field(min_length=3, max_length=3)]
AspectRange = Annotated[list[Positive], Field(min_length=2, max_length=2), AfterValidator(_not_falling)]
FocusingPower = Annotated[float, Field(ge=0), AfterValidator(_zero_or_one_and_more)]
Milestones = Annotated[list[NonNegative], AfterValidator(_rising)]
# timm ignores a part without a number, such as "inc" in rand-m9-inc; here it is an error.
RandAugment = Annotated[
    str,
    Field(
        title="RandAugment in timm's notation",
        pattern=r"^rand(-(m\d+|n\d+|mstd\d+(\.\d+)?|mmax\d+|p\d+(\.\d+)?|inc\d|w\d+|t\w+))*$",
        examples=["rand-m9-mstd0.5-inc1"],
    ),
]


class Group(BaseModel):
    """Base class of groups of settings: unknown settings are errors, and values are not converted."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, protected_namespaces=())

    def arguments(self, *leave_out: str) -> dict[str, Any]:
        """The settings as keyword arguments, without ``leave_out``."""
        return self.model_dump(exclude=set(leave_out))


class AugmentSettings(Group):
    enabled: bool = True
    crop_aspect: AspectRange = Field(default_factory=lambda: [3 / 4, 4 / 3])
    interpolation: Literal["bilinear", "bicubic", "random"] = "bilinear"
    rand_augment: RandAugment | None = None
    color_jitter: NonNegative = 0.0
    erasing: Probability = 0.0
    repeats: PositiveInt = 1

    @model_validator(mode="after")
    def _repeats_what_differs(self) -> Self:
        if not self.enabled and self.repeats > 1:
            raise ValueError(
                f"recipe.augment.repeats={self.repeats} must be 1 with recipe.augment.enabled=false, as the repeated "
                "images would be equal"
            )
        return self


class DataSettings(Group):
    """Settings shared by all data sets."""

    name: Text
    num_classes: PositiveInt
    mean: ChannelMean
    std: ChannelStd
    image_size: PositiveInt
    holdout: Share = 0.0
    batch_size: PositiveInt = 256
    num_workers: NonNegativeInt | None = None
    seed: NonNegativeInt = 0


class PluginDataSettings(DataSettings):
    """Settings of a data set of a plug-in, checked by its ``Settings``."""

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


class MNISTSettings(DataSettings):
    name: Literal["mnist"] = "mnist"
    root: str | None = None
    num_classes: PositiveInt = 10
    mean: ChannelMean = Field(default_factory=lambda: [0.5] * 3)
    std: ChannelStd = Field(default_factory=lambda: [0.5] * 3)
    image_size: PositiveInt = 96
    interpolation: Interpolation = "bilinear"
    train_images: PositiveInt | None = None
    val_images: PositiveInt | None = None
    num_workers: NonNegativeInt | None = 0


class FashionMNISTSettings(MNISTSettings):
    name: Literal["fashion_mnist"] = "fashion_mnist"  # type: ignore[assignment]


class DigitsMultilabelSettings(DigitsSettings):
    name: Literal["digits_multilabel"] = "digits_multilabel"  # type: ignore[assignment]
    mean: ChannelMean = Field(default_factory=lambda: [0.148] * 3)
    std: ChannelStd = Field(default_factory=lambda: [0.280] * 3)
    max_digits: PositiveInt = 4

    @model_validator(mode="after")
    def _has_places(self) -> Self:
        places = (self.image_size // self.digit_size) ** 2
        if self.max_digits > places:
            raise ValueError(
                f"data.max_digits={self.max_digits} must be at most {places}, the digits of "
                f"data.digit_size={self.digit_size} that fit in data.image_size={self.image_size} without overlap"
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
    exif_orientation: bool = True
    augment: AugmentSettings = AugmentSettings()
    max_unreadable: NonNegativeInt = 0


class ImageNetSettings(ImageFolderSettings):
    name: Literal["imagenet"] = "imagenet"  # type: ignore[assignment]  # another data set, the same kind of files
    num_classes: PositiveInt = 1000
    exif_orientation: bool = False
    unpack: bool = False


class PackedSettings(ImageFolderSettings):
    name: Literal["packed"] = "packed"  # type: ignore[assignment]
    exif_orientation: bool | None = None  # type: ignore[assignment]
    mix_shards: NonNegativeInt = 4


class CocoSettings(ImageFolderSettings):
    name: Literal["coco"] = "coco"  # type: ignore[assignment]
    num_classes: PositiveInt = 80
    image_size: PositiveInt = 448
    year: Literal[2014, 2017] = 2014


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


# RunConfig parses each with the class of the given name; other names are those of plug-ins.
AnyDataSettings = (
    DigitsSettings
    | MNISTSettings
    | FashionMNISTSettings
    | ImageFolderSettings
    | ImageNetSettings
    | PackedSettings
    | DigitsMultilabelSettings
    | CocoSettings
    | PluginDataSettings
)
LoggerSettings = CSVLoggerSettings | TensorBoardLoggerSettings | WandbLoggerSettings
