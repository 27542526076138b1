"""Trained models by what a user calls them: a run, a converted model, a row of the paper, or a timm model."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timm.data import ImageNetInfo, infer_imagenet_subset, resolve_model_data_config
from torch import Tensor, nn

from noah_lightning.config.choices import DataSettings, ImageFolderSettings
from noah_lightning.config.plugins import load_plugins
from noah_lightning.config.schema import RunConfig
from noah_lightning.data.image import Picture
from noah_lightning.data.imagefolder import NUM_CLASSES, are_wnids
from noah_lightning.data.transforms import OnDevice, eval_transform, timm_transform
from noah_lightning.errors import ConfigError, WeightsError, did_you_mean, printable
from noah_lightning.models.classifier import load_model
from noah_lightning.models.rows import ROWS, row_config
from noah_lightning.models.timm_models import build_timm_model, default_num_classes
from noah_lightning.models.weights import read_weights
from noah_lightning.run_dir import RunDir
from noah_lightning.tools.convert import converted_config, is_converted, load_converted


@dataclass(frozen=True)
class Trained:
    """A model in evaluation mode, and how its images are prepared.

    Attributes:
        name: as a heading names it.
        read: image file → uint8 (3, H, W) as the model sees it; None if its data set has no files.
        normalize: uint8 (B, 3, H, W) → what the model takes.
        num_classes: K.
        labels: names of the classes, if they are known.
        data: settings of a run's data set.
        multilabel: whether each class has a probability of its own, rather than all of them one distribution.
    """

    name: str
    model: nn.Module
    read: Callable[[Path], Tensor] | None
    normalize: Callable[[Tensor], Tensor]
    num_classes: int
    labels: Sequence[str] | None
    data: DataSettings | None = None
    multilabel: bool = False


@dataclass(frozen=True)
class ClassNames:
    """Names of the classes, and what else the user may call them: their labels (such as wnids) and their numbers."""

    labels: Sequence[str]
    names: Sequence[str]

    @classmethod
    def of(cls, labels: Sequence[str] | None, num_classes: int) -> "ClassNames":
        """Wnids get the first of their English names; without labels the names are numbers."""
        labels = list(labels or map(str, range(num_classes)))
        if not are_wnids(labels):
            return cls(labels, list(map(printable, labels)))
        info = ImageNetInfo("imagenet-22k")
        known = dict(zip(info.label_names(), info.label_descriptions(), strict=True))
        return cls(labels, [known.get(label, label).partition(",")[0] for label in labels])

    def find(self, text: str) -> int:
        """The number of a class; raises ConfigError for an unknown or ambiguous name."""
        both = enumerate(zip(self.labels, self.names, strict=True))
        found = [k for k, (label, name) in both if text in (label, name)]
        if len(found) > 1:
            numbers = " and ".join(map(str, found))
            raise ConfigError(f"{text!r} is the name of the classes {numbers}; write the number of one")
        if found:
            return found[0]
        if text.isdecimal() and int(text) < len(self.labels):
            return int(text)
        advice = did_you_mean(text, [*dict.fromkeys([*self.names, *self.labels])])
        raise ConfigError(f"no class is called {text!r}{advice}, or write a number from 0 to {len(self.labels) - 1}")


def load_trained(
    folder: Path, checkpoint: str = "best", overrides: Sequence[str] = (), ema: bool = False
) -> tuple[RunConfig, nn.Module]:
    """The configuration and the model of a run directory or of a converted model.

    Raises:
        UserError: neither of the two, invalid overrides, or weights that do not fit.
    """
    if is_converted(folder):
        if ema or checkpoint != "best":
            raise ConfigError(f"{folder} is a converted model: it has no checkpoints to choose from")
        config = converted_config(folder, overrides)
        return config, load_converted(folder, config)
    config = RunDir(folder).config(overrides)
    load_plugins(config.plugins)
    return config, load_model(folder, config, checkpoint, ema)


def open_trained(
    source: str,
    checkpoint: str = "best",
    overrides: Sequence[str] = (),
    ema: bool = False,
    weights: Path | None = None,
) -> Trained:
    """The trained model that a user names; ``checkpoint``, ``overrides`` and ``ema`` as of :func:`load_trained`.

    Args:
        source: a run directory, a converted model, a row of the paper or a timm model.
        weights: file for a row or a timm model, instead of timm's pretrained weights.

    Raises:
        UserError: no such model, or weights that are missing or do not fit.
    """
    if Path(source).is_dir():
        if weights:
            raise ConfigError(f"{source} has weights of its own; --weights is for a row of the paper or a timm model")
        return _of_folder(Path(source), checkpoint, overrides, ema)
    if "/" in source and ":" not in source:
        raise ConfigError(f"{source} is not a folder; name a run directory, a row of the paper or a timm model")
    if ema or checkpoint != "best" or overrides:
        raise ConfigError(f"{source} is not a run directory: it has no checkpoints or settings to choose")
    return _of_timm(source, weights)


def _of_folder(folder: Path, checkpoint: str, overrides: Sequence[str], ema: bool) -> Trained:
    config, model = load_trained(folder, checkpoint, overrides, ema)
    data, labels, weights = config.data, None, ""
    if not is_converted(folder):
        weights = f" ({checkpoint}, ema)" if ema else f" ({checkpoint})"
        with suppress(ConfigError):  # a run that has not finished has no predictions
            labels = RunDir(folder).predictions().class_names
    if labels is None and data.name == "imagenet":
        labels = ImageNetInfo().label_names()
    name = f"{folder}{weights}: {config.model.name}, head={config.head.name}"
    normalize = OnDevice(data.mean, data.std).normalize
    multilabel = config.recipe.loss != "cross_entropy"
    return Trained(name, model, _file_reader(data, labels), normalize, data.num_classes, labels, data, multilabel)


def _file_reader(data: DataSettings, labels: Sequence[str] | None) -> Callable[[Path], Tensor] | None:
    """What prepares an image file as the validation does; None for data sets that are not files."""
    if not isinstance(data, ImageFolderSettings):
        return None
    transform = eval_transform(data.image_size, data.crop_ratio, data.interpolation)
    upright = data.exif_orientation
    if upright is None:  # of a pack: as its folder
        upright = not (len(labels or ()) == NUM_CLASSES and are_wnids(labels or ()))
    return lambda file: transform(Picture.read(file, upright))


def _of_timm(source: str, weights: Path | None) -> Trained:
    name, args = source, dict[str, Any]()
    if source in ROWS:
        row = row_config(source, "gap").model
        name, args = row.name, row.args
    loaded = read_weights(weights) if weights else None
    if loaded and loaded.of_classifier:
        raise WeightsError(f"{weights} has a head of ours; name its run directory instead of {source}")
    num_classes = default_num_classes(name) or 1000
    try:
        model: Any = build_timm_model(name, num_classes, pretrained=loaded is None, weights=loaded, **args)
    except WeightsError as error:
        reason, setting, _ = str(error).partition("; set model.weights=")  # here it is an option
        raise WeightsError(f"{reason}; add --weights FILE" if setting else reason) from error
    found = model.pretrained_cfg["num_classes"]
    if loaded and found != num_classes and found:  # the file decides
        model = build_timm_model(name, found, weights=loaded, **args)
    if not found:
        raise WeightsError(f"{weights or name} has no classifier, so there are no logits to explain")
    prepared = resolve_model_data_config(model)
    transform = timm_transform(prepared)
    subset = infer_imagenet_subset({"num_classes": found})
    return Trained(
        f"{source}: {name}, {weights or 'pretrained'}",
        model.eval(),
        lambda file: transform(Picture.read(file, upright=True)),
        OnDevice(prepared["mean"], prepared["std"]).normalize,
        found,
        ImageNetInfo(subset).label_names() if subset else None,
    )
