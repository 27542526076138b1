"""Types of settings with their ranges, from which messages and documentation are derived."""

from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

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
ShortText = Annotated[str, Field(min_length=1, max_length=64)]  # maximum of W&B tags
Interpolation = Literal["bilinear", "bicubic"]
NoahInit = Literal["official", "lecun", "small"]
# Lightning's, except for sharded models, because checkpoints here are not sharded.
Strategy = Literal["auto", "ddp", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters_false"]
TrueOrMixed = Literal["32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true"]
Bits = Literal["32", "bf16", "16", "64", 32, 16, 64]
Precision = Literal[TrueOrMixed, Bits, "transformer-engine", "transformer-engine-float16"]


def _distinct(values: list[int]) -> list[int]:
    if len(set(values)) < len(values):
        raise ValueError("must be different GPUs, such as [0,1]")
    return values


def _rising(values: list[float]) -> list[float]:
    if any(later <= earlier for earlier, later in pairwise(values)):
        raise ValueError("must be rising numbers")
    return values


def _not_falling(values: list[float]) -> list[float]:
    if values[0] > values[1]:  # equal values: a fixed shape
        raise ValueError("must be 2 rising numbers above 0 (width / height)")
    return values


# RGB, with white as 1.
ChannelMean = Annotated[list[Probability], Field(min_length=3, max_length=3)]
ChannelStd = Annotated[list[Fraction], Field(min_length=3, max_length=3)]
AspectRange = Annotated[list[Positive], Field(min_length=2, max_length=2), AfterValidator(_not_falling)]
Milestones = Annotated[list[NonNegative], AfterValidator(_rising)]
GPUs = Annotated[list[NonNegativeInt], Field(min_length=1), AfterValidator(_distinct)]
Devices = PositiveInt | Literal[-1, "auto"] | GPUs
BatchLimit = PositiveInt | Fraction | None  # number or fraction of batches
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
