"""Settings of the heads, each chosen by its name."""

from typing import Literal, get_args

from pydantic import ConfigDict

from noah_lightning.config.choices import (
    DropRate,
    Fraction,
    Group,
    NoahInit,
    NonNegative,
    OpenFraction,
    Positive,
    PositiveInt,
    Text,
)


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


class PooledHeadSettings(Group):
    """Settings shared by all heads that classify pooled features."""

    batch_norm: bool = False
    dropout: DropRate = 0.0


class AvgHeadSettings(PooledHeadSettings):
    name: Literal["avg"] = "avg"


class MaxHeadSettings(PooledHeadSettings):
    name: Literal["max"] = "max"


class AvgMaxHeadSettings(PooledHeadSettings):
    name: Literal["avgmax"] = "avgmax"


class ClsMeanHeadSettings(PooledHeadSettings):
    name: Literal["cls_mean"] = "cls_mean"


class GeMHeadSettings(PooledHeadSettings):
    name: Literal["gem"] = "gem"
    power: Positive = 3.0


class LsePlusHeadSettings(PooledHeadSettings):
    name: Literal["lse_plus"] = "lse_plus"
    r: Positive = 10.0


class SimPoolHeadSettings(PooledHeadSettings):
    name: Literal["simpool"] = "simpool"
    gamma: Positive | None = None


class EPHeadSettings(PooledHeadSettings):
    name: Literal["ep"] = "ep"
    queries: PositiveInt = 32


class AIMHeadSettings(PooledHeadSettings):
    name: Literal["aim"] = "aim"
    heads: PositiveInt = 8


class CAEHeadSettings(PooledHeadSettings):
    name: Literal["cae"] = "cae"
    heads: PositiveInt = 8


class ABMILHeadSettings(PooledHeadSettings):
    name: Literal["abmil"] = "abmil"
    hidden: PositiveInt = 128
    gated: bool = True


class WildcatHeadSettings(Group):
    name: Literal["wildcat"] = "wildcat"
    maps: PositiveInt = 4
    share: Fraction = 0.2
    alpha: NonNegative = 0.7
    dropout: DropRate = 0.0


class MAPHeadSettings(PooledHeadSettings):
    name: Literal["map"] = "map"
    heads: PositiveInt = 8


class CLIPHeadSettings(PooledHeadSettings):
    name: Literal["clip"] = "clip"
    heads: PositiveInt = 8
    grid: PositiveInt = 7


class CaiTHeadSettings(PooledHeadSettings):
    name: Literal["cait"] = "cait"
    heads: PositiveInt = 8
    depth: PositiveInt = 2
    layer_scale: Positive = 0.1


class VJEPAHeadSettings(PooledHeadSettings):
    name: Literal["vjepa"] = "vjepa"
    heads: PositiveInt = 8


class PRRHeadSettings(PooledHeadSettings):
    name: Literal["prr"] = "prr"
    heads: PositiveInt = 8


class CSRAHeadSettings(Group):
    name: Literal["csra"] = "csra"
    heads: Literal[1, 2, 4, 6, 8] = 1
    weight: NonNegative = 0.1
    dropout: DropRate = 0.0


class MLDecoderHeadSettings(Group):
    name: Literal["ml_decoder"] = "ml_decoder"
    groups: PositiveInt | None = None
    width: PositiveInt = 768
    heads: PositiveInt = 8
    dropout: DropRate = 0.1


class PluginHeadSettings(Group):
    """Settings of a head of a plug-in, checked by its constructor."""

    model_config = ConfigDict(extra="allow")
    name: Text


# RunConfig parses a head with the class of its name; other names are those of plug-ins.
HeadSettings = (
    GapHeadSettings
    | NoahHeadSettings
    | AvgHeadSettings
    | MaxHeadSettings
    | AvgMaxHeadSettings
    | ClsMeanHeadSettings
    | GeMHeadSettings
    | LsePlusHeadSettings
    | SimPoolHeadSettings
    | EPHeadSettings
    | AIMHeadSettings
    | CAEHeadSettings
    | ABMILHeadSettings
    | WildcatHeadSettings
    | MAPHeadSettings
    | CLIPHeadSettings
    | CaiTHeadSettings
    | VJEPAHeadSettings
    | PRRHeadSettings
    | CSRAHeadSettings
    | MLDecoderHeadSettings
    | PluginHeadSettings
)
SETTINGS: dict[str, type[Group]] = {
    kind.model_fields["name"].default: kind for kind in get_args(HeadSettings) if kind is not PluginHeadSettings
}
