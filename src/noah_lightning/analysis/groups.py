"""Groups of runs that differ only in their seed, and the labels of these groups."""

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from noah_lightning.config.results import Results
from noah_lightning.run_dir import RunDir

Settings = Mapping[str, Any]  # dotted names

BASELINE = "gap"  # head that others are compared with
_NAMES = ("model.name", "head.name")  # always in the label


@dataclass(frozen=True)
class Group:
    """Finished runs by seed, with the settings that they share."""

    label: str  # model=…, head=… and settings in which the groups differ
    short: str  # without the model if all groups share it
    settings: Settings
    runs: Mapping[int, RunDir]  # by seed; of runs with the same seed, the last by path
    repeated: tuple[RunDir, ...] = ()  # the others

    @property
    def model(self) -> str:
        return str(self.settings["model.name"])

    @property
    def head(self) -> str:
        return str(self.settings["head.name"])

    @property
    def outcomes(self) -> dict[int, Results]:
        """By seed."""
        return {seed: run.outcome for seed, run in self.runs.items() if run.outcome}

    def mean(self, field: str) -> float:
        """Mean over the seeds of a field of the results."""
        return statistics.fmean(getattr(outcome, field) for outcome in self.outcomes.values())

    @property
    def multilabel(self) -> bool:
        return next(iter(self.outcomes.values())).multilabel

    @property
    def metric(self) -> str:
        """What :attr:`top1` is."""
        return "mAP" if self.multilabel else "top-1"

    @property
    def top1(self) -> float:
        """Mean over the seeds, in percent; of multi-label runs, the mean average precision."""
        return self.mean("score")

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation of :attr:`top1` over the seeds, in percentage points; None for one seed."""
        return statistics.stdev(o.score for o in self.outcomes.values()) if len(self.runs) > 1 else None

    @property
    def peak_memory(self) -> int | None:
        """Maximum over the seeds, in bytes."""
        return max((o.peak_memory for o in self.outcomes.values() if o.peak_memory is not None), default=None)


def group_runs(runs: Iterable[RunDir]) -> list[Group]:
    """Groups of the finished ``runs``, sorted by model, the baseline first."""
    members: defaultdict[Hashable, list[RunDir]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: str(run.path)):
        if run.outcome is not None:
            members[identity(run.settings)].append(run)
    settings = [_shared(found[0].settings) for found in members.values()]
    groups = []
    labels = zip(make_labels(settings), short_labels(settings), strict=True)
    for shared, (label, short), found in zip(settings, labels, members.values(), strict=True):
        by_seed = {run.seed: run for run in found}
        repeated = tuple(run for run in found if by_seed[run.seed] is not run)
        groups.append(Group(label, short, shared, dict(sorted(by_seed.items())), repeated))
    return sorted(groups, key=lambda g: (g.model, g.head != BASELINE, [*map(_word_order, g.label.split())]))


def _word_order(word: str) -> tuple[str, float, str]:
    """Sort key of a word of a label such as ``head_num=4``: numbers by value, before other words."""
    key, _, value = word.partition("=")
    try:
        return key, float(value), ""
    except ValueError:
        return key, math.inf, value


def _shared(settings: Settings) -> dict[str, Any]:
    """Settings that tell groups apart: without seeds, what is only logged, and a learning rate that was chosen.

    Nor ``model.noah``, the defaults of ``head``.
    """
    chosen = ("recipe.optimizer.lr",) if settings.get("recipe.optimizer.lr_choices") else ()
    left_out = ("seed", "data.seed", *chosen)
    return {
        key: value
        for key, value in settings.items()
        if key not in left_out and not key.startswith(("logger.", "attention.", "model.noah."))
    }


def identity(settings: Settings, only: tuple[str, ...] = ("",), without: tuple[str, ...] = ()) -> Hashable:
    """Equal for runs with the same settings but the seed; ``only`` and ``without`` are prefixes of keys."""
    shared = _shared(settings).items()
    return frozenset((k, _comparable(v)) for k, v in shared if k.startswith(only) and not k.startswith(without))


def make_labels(groups: Sequence[Settings], names: tuple[str, ...] = _NAMES) -> list[str]:
    """A unique label for each group: model, head, and the settings in which the groups differ.

    ``names`` are the settings that are always in a label, if the groups only have settings of the model or the head.
    """
    keys = _varying(groups, names)
    labels = [_write(settings, keys, names) for settings in groups]
    for label, count in Counter(labels).items():
        if count > 1:  # they differ only in whether a setting exists
            same = [i for i, other in enumerate(labels) if other == label]
            more = _differing([groups[i] for i in same], absent_counts=True)
            for i in same:
                labels[i] = _write(groups[i], [*keys, *more], names)
    return labels


def short_labels(groups: Sequence[Settings]) -> list[str]:
    """Labels without the model if all groups share it."""
    one_model = len({settings["model.name"] for settings in groups}) == 1
    return [label.partition(" ")[2] if one_model else label for label in make_labels(groups)]


def _varying(groups: Sequence[Settings], names: tuple[str, ...]) -> list[str]:
    """Settings that differ between groups of the same model, or, for settings of the head, of the same head.

    Each model has its own recipe and each head its own settings, so their names identify different ones.
    """
    keys = {key for key in _differing(groups) if key == "data.name"}
    for name in names:
        for value in {settings[name] for settings in groups}:
            alike = _differing([settings for settings in groups if settings[name] == value])
            keys |= {key for key in alike if key.startswith("head.") == (name == "head.name")}
    return sorted(keys - set(names), key=lambda key: (not key.startswith("head."), key))


def _differing(groups: Sequence[Settings], absent_counts: bool = False) -> list[str]:
    values: defaultdict[str, list[Hashable]] = defaultdict(list)
    for settings in groups:
        for key, value in settings.items():
            values[key].append(_comparable(value))
    return [k for k, found in values.items() if len(set(found)) > 1 or (absent_counts and len(found) < len(groups))]


def _comparable(value: Any) -> Hashable:
    """Hashable value, in which 1 equals 1.0 but not true, and NaN equals itself."""
    if isinstance(value, list):
        return tuple(map(_comparable, value))
    return value if isinstance(value, int | float) and type(value) is not bool and value == value else repr(value)


def _write(settings: Settings, keys: Sequence[str], names: tuple[str, ...]) -> str:
    """Label such as ``head_num=4``, or ``head.head_num=4`` if the last part of the key is ambiguous."""
    last = {key: key.removesuffix(".name").rpartition(".")[2] for key in (*names, *keys)}  # data.name → data
    used = Counter(last.values())
    words = {key: last[key] if key in names or used[last[key]] == 1 else key for key in last if key in settings}
    return " ".join(f"{word}={_show(settings[key])}" for key, word in words.items())


def _show(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(_show, value))}]"
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else " ".join(str(value).split())
