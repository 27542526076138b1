"""Conversion of official checkpoints into a folder with model.safetensors and model.json."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors.torch import save_file
from torch import nn

from noah_lightning.config.schema import RunConfig
from noah_lightning.errors import ConfigError, WeightsError, one_line
from noah_lightning.models.classifier import build_model
from noah_lightning.models.cost import count_parameters
from noah_lightning.models.official_checkpoints import convert_official, read_official, row_overrides
from noah_lightning.models.rows import row_config
from noah_lightning.models.weights import read_weights

WEIGHTS, FACTS = "model.safetensors", "model.json"


@dataclass(frozen=True)
class Facts:
    """Content of ``model.json``."""

    row: str  # of the paper
    head: str  # gap or noah
    pre_logits: bool  # whether it has the additional layer of the released narrow DeiTs
    parameters: int
    source: str  # name of the converted file
    ema: bool  # whether the averaged weights were converted


def convert(file: Path, row: str, head: str, output: Path, ema: bool = False) -> Facts:
    """Convert an official checkpoint file into the new folder ``output``.

    Raises:
        ConfigError: unknown row or head, or ``output`` exists or cannot be written.
        WeightsError: the file cannot be read, or its weights are not those of this row and head.
    """
    if output.exists():
        raise ConfigError(f"{output} already exists; choose another --output, or remove it")
    row_config(row, head)  # before a large file is read
    official = read_official(file, ema)
    weights = convert_official(official, row, head)
    extra = row_overrides(row, official)
    config = row_config(row, head, extra)
    model = build_model(config)
    model.load_state_dict(weights)
    facts = Facts(row, head, bool(extra), count_parameters(model), file.name, ema)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as unfinished:
            folder = Path(unfinished) / output.name
            folder.mkdir()
            save_file(weights, folder / WEIGHTS)
            (folder / FACTS).write_text(json.dumps(asdict(facts), indent=2) + "\n")
            folder.rename(output)
    except OSError as error:
        raise ConfigError(f"{output} cannot be written: {one_line(error)}") from error
    return facts


def is_converted(folder: Path) -> bool:
    """Whether ``folder`` was written by :func:`convert`."""
    return (folder / FACTS).is_file()


def converted_config(folder: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration of a converted model; raises ConfigError for an invalid model.json or override."""
    path = folder / FACTS
    try:
        facts = Facts(**json.loads(path.read_text()))
        if not isinstance(facts.pre_logits, bool):
            raise ValueError(f"pre_logits={facts.pre_logits!r} must be true or false")
    except (OSError, RecursionError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} is not valid: {one_line(error)}") from error
    extra = ["model.args.pre_logits=true"] if facts.pre_logits else []
    return row_config(facts.row, facts.head, [*extra, *overrides])


def load_converted(folder: Path, config: RunConfig) -> nn.Module:
    """The converted model in evaluation mode.

    Raises:
        WeightsError: weights that are missing, unreadable or of another model.
    """
    weights, model = read_weights(folder / WEIGHTS).state, build_model(config)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        path = folder / WEIGHTS
        raise WeightsError(f"{path} is not of the model in {folder / FACTS}: {one_line(error)}") from error
    return model.eval()
