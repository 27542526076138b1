"""Weights from files: read without executing anything, and their names matched with those of a model."""

import argparse
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from noah_lightning.errors import WeightsError, name_first, one_line
from noah_lightning.run_dir import CHECKPOINTS

StateDict = dict[str, Tensor]

BACKBONE, WITHOUT_BACKBONE = "backbone.ckpt", "without_backbone"  # beside a checkpoint that has this entry

IN_FOLDERS = (f"{CHECKPOINTS}/best.ckpt", "model.safetensors")  # of a run, and of a converted or saved model
RAW, AVERAGED = "model.", "ema.module."  # prefixes in the checkpoints of a run
_WRAPPERS = (RAW, AVERAGED, "module.", "_orig_mod.")  # the last two: parallel and compiled training
_BACKBONE, _HEAD = "backbone.model.", "head."  # of a Classifier
_UNCOUNTED = "num_batches_tracked"  # files of torch before 0.4.1 lack it, and torch starts it at 0 then


class _Ignored:
    """Stands for an object that is not needed: it accepts anything and keeps nothing."""

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...


# What files hold besides the weights, by the names that pickle knows it by. An accuracy as numpy's number, saved by
# numpy 1 or 2, is ignored: numpy would take bytes from the file for addresses in memory.
_HARMLESS: list[Any] = [
    argparse.Namespace,  # the arguments of the script
    *((_Ignored, f"numpy.{name}") for name in ("dtype", "core.multiarray.scalar", "_core.multiarray.scalar")),
]


@dataclass
class Weights:
    """A state dict and the file that it comes from."""

    path: Path
    state: StateDict
    by_order: bool = False  # whether a model could only match the names by their order

    @property
    def of_classifier(self) -> bool:
        """Whether these are a backbone and a head of ours, rather than a model of timm's or another library's."""
        return any(name.startswith(_BACKBONE) for name in self.state)

    @property
    def backbone(self) -> StateDict:
        """The backbone; a model of timm's or another library's has its classifier here too."""
        return _below(_BACKBONE, self.state) if self.of_classifier else self.state

    @property
    def head(self) -> StateDict:
        return _below(_HEAD, self.state) if self.of_classifier else {}

    @property
    def class_token(self) -> bool:
        return any(name.rpartition(".")[2] == "cls_token" for name in self.backbone)

    def fill(self, unused: StateDict) -> None:
        """Add weights of the backbone that the file lacks."""
        self.state = {_BACKBONE + name: tensor for name, tensor in unused.items()} | self.state

    def load_head(self, head: nn.Module) -> bool:
        """Load the weights of a head with the same entries and shapes; whether these are such."""
        own = head.state_dict()
        same = bool(own) and _shapes(own) == _shapes(self.head)
        if same:
            head.load_state_dict(self.head)
        return same

    def describe(self, with_head: bool) -> str:
        """What was loaded into a model, in one line."""
        how = ", its names matched by order" if self.by_order else ""
        return f"backbone{how}{', and head,' if with_head else '; the head starts fresh;'} from {self.path}"


def read_weights(path: str | Path, averaged: bool | None = None) -> Weights:
    """The weights in a file, or in the folder of a run, of a converted model or of one saved for timm.

    Names lose what training put before every one of them. Of a run's checkpoint, the average of the weights is taken
    if ``averaged``, which is by default only in ``best_ema.ckpt``.

    Raises:
        WeightsError: no such file, an unreadable one, or one without weights.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        inside = [path / name for name in IN_FOLDERS if (path / name).is_file()]
        if not inside:
            raise WeightsError(f"no weights file at {path}: it is a folder without {' or '.join(IN_FOLDERS)}")
        path = inside[0]
    content = read_file(path)
    state = state_dict_in(content, path)
    if content.get(WITHOUT_BACKBONE):  # of a head that was trained on stored features
        state |= state_dict_in(read_file(path.with_name(BACKBONE)), path.with_name(BACKBONE))
    has_average = any(name.startswith(AVERAGED) for name in state)
    if averaged and not has_average:
        raise WeightsError(f"{path} has no average of the weights")
    if has_average:
        wanted = AVERAGED if averaged or (averaged is None and path.stem.endswith("_ema")) else RAW
        state = {name: tensor for name, tensor in state.items() if name.startswith(wanted)}
    while state and (wrapper := next((one for one in _WRAPPERS if all(n.startswith(one) for n in state)), "")):
        state = _below(wrapper, state)
    return Weights(path, state)


def read_file(path: Path) -> Any:
    """Content of a safetensors or ``torch.save`` file, whatever its name; nothing in it is executed.

    Raises:
        WeightsError: no such file, or an unreadable one.
    """
    if not path.is_file():
        raise WeightsError(f"no weights file at {path}")
    with torch.serialization.safe_globals(_HARMLESS):
        try:
            with path.open("rb") as file:
                if file.read(9)[4:] == b"\0\0\0\0{":  # safetensors: the length of a header in JSON, and the header
                    return load_file(path)
                file.seek(0)
                return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # torch, pickle, zipfile and safetensors each raise their own
            raise WeightsError(f"{path} cannot be read as model weights: {_reason(path, error)}") from error


def state_dict_in(content: Any, path: Path, ema: bool | None = None) -> StateDict:
    """The state dict in a file's content: bare, or under the names that timm and many scripts give it.

    ``ema`` chooses or refuses averaged weights; None takes them where they are.

    Raises:
        WeightsError: there is none.
    """
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path} holds no model weights but a {type(content).__name__}; a state dict is needed")
    averaged = [content.get(key) for key in ("state_dict_ema", "model_ema")]
    raw = [content, content.get("state_dict"), content.get("model")]
    for state in [*(averaged if ema is not False else []), *(raw if not ema else [])]:
        if isinstance(state, Mapping) and state and all(isinstance(tensor, Tensor) for tensor in state.values()):
            return dict(state)
    what, names = "averaged weights" if ema else "model weights", [str(name) for name in content]
    raise WeightsError(f"{path} holds no {what}; it has {name_first(names) or 'nothing'}")


def in_order(state: StateDict, target: Mapping[str, Tensor], classifiers: Collection[str]) -> StateDict | None:
    """The weights under the names of ``target``, matched by their order, or None if they do not match so.

    Libraries name the modules of an architecture differently, but define them in the same order. Every module must
    have the entries and shapes of its counterpart; the classifier may have other classes or be missing.
    """
    names = [name for name in state if not name.endswith(_UNCOUNTED)]
    if names == sorted(names):  # as safetensors files are: their order says nothing
        return None
    theirs, ours = _modules(state), _modules(target)
    if len(theirs) < len(ours):
        ours = {module: entries for module, entries in ours.items() if module not in classifiers}
    if len(theirs) != len(ours):
        return None
    matched: StateDict = {}
    for module, entries, found in zip(ours, ours.values(), theirs.values(), strict=True):
        first = 1 if module in classifiers else 0  # a classifier's first dimension is its classes
        if _shapes(entries, first) != _shapes(found, first):
            return None
        matched |= {f"{module}.{entry}".removeprefix("."): tensor for entry, tensor in found.items()}
    return matched


def misfit(error: BaseException, state: StateDict, target: Mapping[str, Tensor]) -> str:
    """torch's message about weights that do not fit, with the first names of both sides and the most similar pair."""
    missing, unexpected = (
        re.findall(r'"([^"]+)"', "".join(re.findall(rf"{kind} key\(s\) in state_dict: (.*)", str(error))))
        for kind in ("Missing", "Unexpected")
    )
    sizes = re.findall(r"size mismatch for (\S+): .*?Size\((.*?)\).*?Size\((.*?)\)", str(error))
    if not (missing or unexpected or sizes):
        first = f"its names begin with {name_first(list(state))}, those of the model with {name_first(list(target))}"
        return f"{one_line(error, 150)}; {first}"
    sides = (("Missing", missing), ("Unexpected", unexpected))
    parts = [f"{kind}: {len(names)} ({name_first(names)})" for kind, names in sides if names]
    parts += [f"size mismatch for {name}: {theirs} in the file, not {ours}" for name, theirs, ours in sizes[:1]]
    for name in missing:
        kind = (name.rpartition(".")[2], _shapes(target).get(name))
        like = [key for key in unexpected if (key.rpartition(".")[2], _shapes(state).get(key)) == kind]
        if near := get_close_matches(name, like, n=1, cutoff=0):
            parts.append(f"nearest: {name} ← {near[0]}")
            break
    return "; ".join(parts)


def _modules(state: Mapping[str, Tensor]) -> dict[str, StateDict]:
    """The entries of each module, in order."""
    modules: dict[str, StateDict] = {}
    for name, tensor in state.items():
        module, _, entry = name.rpartition(".")
        if entry != _UNCOUNTED:
            modules.setdefault(module, {})[entry] = tensor
    return modules


def _shapes(state: Mapping[str, Tensor], first: int = 0) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape[first:]) for name, tensor in state.items()}


def _below(prefix: str, state: StateDict) -> StateDict:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _reason(path: Path, error: Exception) -> str:
    """Why a file cannot be read, without the advice of the libraries to execute what is in it."""
    with suppress(Exception), Image.open(path) as image:
        return f"it is a {image.format} image"
    objects = re.findall(r"GLOBAL (\S+) was not an allowed", str(error))
    with suppress(Exception):
        objects = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path)) or objects
    if objects or "TorchScript" in str(error):
        what = f"Python objects ({name_first(objects)})" if objects else "a TorchScript program"
        return f"it holds {what}, which noah does not execute; save torch.save(model.state_dict(), FILE) instead"
    with suppress(Exception):
        with path.open(encoding="utf-8") as file:
            line = file.readline(40).rstrip("\n")
        if line and line.isprintable():
            return f"it is text that starts with {line!r}"
    if "weights_only" in str(error) or not str(error):
        return "it is damaged, or neither safetensors nor torch.save wrote it"
    return one_line(error)
