"""Runs that differ in nothing but their seed, and what such a group is called."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from noah_lightning.run_dir import RunDir

Settings = Mapping[str, Any]
_NAMES = ("model.name", "head.name")  # always in the label


@dataclass(frozen=True)
class Group:
    """Finished runs by seed, with the settings that they share."""

    label: str  # model=… head=… and the settings in which the groups differ
    short: str  # the same without the model where there is only one
    settings: Settings
    runs: Mapping[int, RunDir]  # by seed; of runs with the same seed the last by path
    repeated: tuple[RunDir, ...] = ()  # the others

    @property
    def model(self) -> str:
        return str(self.settings["model.name"])

    @property
    def head(self) -> str:
        return str(self.settings["head.name"])


def group_runs(runs: Sequence[RunDir]) -> list[Group]:
    """Groups of the finished ones among ``runs``, the baselines of each model first."""
    members: defaultdict[object, list[RunDir]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: str(run.path)):
        if run.outcome is not None:
            members[identity(run.settings)].append(run)
    all_settings = [shared(group[0].settings) for group in members.values()]
    labels = make_labels(all_settings)
    one_model = len({settings["model.name"] for settings in all_settings}) == 1
    groups = []
    for settings, label, group in zip(all_settings, labels, members.values(), strict=True):
        by_seed = {run.seed: run for run in group}
        kept = {by_seed[seed].path for seed in by_seed}
        repeated = tuple(run for run in group if run.path not in kept)
        short = label.partition(" ")[2] if one_model else label
        groups.append(Group(label, short, settings, dict(sorted(by_seed.items())), repeated))
    return sorted(groups, key=lambda group: _order(group.label, group.settings))


def shared(settings: Settings) -> dict[str, Any]:
    """Without the seed, what follows from it, and where metrics go.

    ``model.noah`` goes too: it only proposes what ``head`` holds in the end.
    """
    return {
        key: value
        for key, value in settings.items()
        if key not in ("seed", "data.seed") and not key.startswith(("logger.", "model.noah."))
    }


def identity(settings: Settings, keep: Callable[[str], bool] = lambda key: True) -> frozenset[tuple[str, str]]:
    """Equal for runs that share all settings but the seed, or those whose name ``keep`` approves."""
    return frozenset((key, _plain(value)) for key, value in shared(settings).items() if keep(key))


def make_labels(groups: Sequence[Settings]) -> list[str]:
    """One label each, all different: model, head, and the settings in which the groups differ."""
    varying = _varying(groups)
    keys = {i: [key for key in varying if key in settings] for i, settings in enumerate(groups)}
    written = [_write(settings, keys[i], varying) for i, settings in enumerate(groups)]
    for label, count in Counter(written).items():
        if count > 1:  # they differ in having a setting at all
            same = [i for i, other in enumerate(written) if other == label]
            apart = _differing([groups[i] for i in same], absent_counts=True)
            for i in same:
                more = varying + [key for key in apart if key not in varying]
                written[i] = _write(groups[i], [key for key in more if key in groups[i]], more)
    return written


def _varying(groups: Sequence[Settings]) -> list[str]:
    """Settings that differ between groups of one model, or for those of the head, between groups of one head.

    Another model brings its own recipe, and another head its own settings; the name says as much.
    """
    keys: dict[str, None] = {}
    for name, of_head in (("model.name", False), ("head.name", True)):
        for value in {settings[name] for settings in groups}:
            alike = [settings for settings in groups if settings[name] == value]
            keys |= dict.fromkeys(key for key in _differing(alike) if key.startswith("head.") == of_head)
    keys |= dict.fromkeys(key for key in _differing(groups) if key == "data.name")
    return sorted((key for key in keys if key not in _NAMES), key=lambda key: (not key.startswith("head."), key))


def _differing(groups: Sequence[Settings], absent_counts: bool = False) -> list[str]:
    values: defaultdict[str, list[str]] = defaultdict(list)
    for settings in groups:
        for key, value in settings.items():
            values[key].append(_plain(value))
    return [
        key for key, found in values.items() if len(set(found)) > 1 or (absent_counts and len(found) < len(groups))
    ]


def _write(settings: Settings, keys: Iterable[str], all_keys: Sequence[str]) -> str:
    used = Counter(_last(key) for key in (*_NAMES, *all_keys))
    words = [f"{_last(key)}={show(settings[key])}" for key in _NAMES]
    words += [f"{_last(key) if used[_last(key)] == 1 else key}={show(settings[key])}" for key in keys]
    return " ".join(words)


def _last(key: str) -> str:
    """``head.head_num`` → ``head_num``, ``data.name`` → ``data``."""
    return key.removesuffix(".name").rpartition(".")[2]


def show(value: Any) -> str:
    """A setting's value in few letters."""
    if isinstance(value, list):
        return f"[{','.join(show(item) for item in value)}]"
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else " ".join(str(value).split())


def _plain(value: Any) -> str:
    """For comparison: 1 and 1.0 are one value, 1 and true are not."""
    if isinstance(value, list):
        return f"[{','.join(_plain(item) for item in value)}]"
    return repr(float(value)) if isinstance(value, int | float) and not isinstance(value, bool) else repr(value)


def _order(label: str, settings: Settings) -> tuple[object, ...]:
    """By model, the baseline first, then word by word with numbers by size."""
    words = [word.partition("=") for word in label.split()]
    return str(settings["model.name"]), settings["head.name"] != "gap", [_word_order(w[0], w[2]) for w in words]


def _word_order(key: str, value: str) -> tuple[str, bool, float, str]:
    try:
        return key, False, float(value), ""
    except ValueError:
        return key, True, 0.0, value
