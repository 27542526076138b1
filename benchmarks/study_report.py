"""Document of the study, from its run directories and a template."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from benchmarks.report import machine
from noah_lightning.analysis import Comparison, compare
from noah_lightning.analysis.figures import Picture, draw_figures, group_curve
from noah_lightning.analysis.groups import BASELINE, Group
from noah_lightning.analysis.statistics import Entry, Paired, compare_paired, holm
from noah_lightning.analysis.summary import p_value, signed, summary
from noah_lightning.analysis.tables import Table
from noah_lightning.errors import ConfigError, count
from noah_lightning.loggers.console import duration
from noah_lightning.run_dir import RESULTS, SWEEP
from noah_lightning.sweep.side_by_side import FOLDER

FACTS = "study.json"  # in the output folder: machine, date and seconds of each part
TEMPLATE = "study.md.j2"
NONE = "–"
KEPT = {  # names of the pictures of a comparison, by part
    "frozen": ("critical-difference", "accuracy-parameters-1", "accuracy-milliseconds-1"),
    "grid": ("heat-map-1",),
    "tuned": ("critical-difference",),
}
RATE = "recipe.optimizer.lr"


@dataclass(frozen=True)
class Duel:
    """NOAH against another head, seed by seed on the same images."""

    head: str
    points: float
    paired: Paired
    p: float  # after Holm's correction for all duels

    @property
    def significant(self) -> bool:
        return self.p < 0.05 and not self.paired.low <= 0 <= self.paired.high


def write_document(output: Path, document: Path, names: Sequence[str]) -> None:
    """Write ``document`` from the finished runs in ``output``, and its pictures into a folder of the same name.

    Args:
        names: of the folders of the parts.

    Raises:
        ConfigError: no run has finished.
    """
    found = {name: compare([output / name]) for name in names if any((output / name).glob(f"*/{RESULTS}"))}
    if not found:
        raise ConfigError(f"{output} has no finished run of the study")
    path = output / FACTS
    facts: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    facts = {"machine": machine(), "date": NONE, "seconds": {}} | facts
    seconds = {name: duration(value) for name, value in facts["seconds"].items()}
    folder = document.parent / document.stem
    folder.mkdir(parents=True, exist_ok=True)
    parts = {name: _part(name, comparison, folder, output / name) for name, comparison in found.items()}
    if "frozen" in found and "init" in found:
        parts["init"]["reading"].append(among_heads(found["init"], found["frozen"]))
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(undefined=StrictUndefined, loader=loader, trim_blocks=True, lstrip_blocks=True)
    text = environment.get_template(TEMPLATE).render(
        facts=facts, seconds=seconds, parts=parts, folder=folder.name, reference=_reference(output / "frozen")
    )
    document.write_text(text.rstrip() + "\n", encoding="utf-8")


def _part(name: str, comparison: Comparison, folder: Path, sweep: Path) -> dict[str, Any]:
    """What the template shows of one part; its pictures are written into ``folder``."""
    groups = [entry.group for entry in comparison.entries]
    first = next(iter(groups[0].runs.values()))
    words = json.loads((sweep / SWEEP).read_text())["command"]
    wanted = next(word for word in reversed(words) if word.startswith("head=")).removeprefix("head=").split(",")
    last = {word.partition("=")[0]: word for word in words}  # of words for the same setting
    last |= {"model.weights": "model.weights=FILE", "data.root": "data.root=DIR"}
    of_head = name in ("frozen", "long", "tuned")
    duels = noah_duels(groups) if of_head else []
    return {
        "command": shlex.join(["noah", "train", "-m", *last.values()]),
        "settings": first.settings,
        "runs": sum(len(group.runs) for group in groups),
        "groups": len(groups),
        "epochs": " and ".join(map(str, sorted({group.settings["recipe.epochs"] for group in groups}))),
        "seeds": max(len(group.runs) for group in groups),
        "val_images": groups[0].outcomes[first.seed].images,
        "unfinished": len(comparison.unfinished),
        "without": [head for head in wanted if head not in {group.head for group in groups}],
        "table": {"grid": grid_table, "init": init_table}.get(name, heads_table)(comparison).markdown(),
        "duels": duels_table(duels).markdown() if duels else "",
        "reading": [*summary(comparison), *reading(comparison, duels, timed=name != "tuned")]
        if of_head
        else differences(groups),
        "edges": edges(groups),
        "pictures": [picture for picture in draw_figures(comparison) if _keep(picture, name, folder)],
    }


def _keep(picture: Picture, part: str, folder: Path) -> bool:
    """Write a picture of the document as ``PART-NAME.png``; False for another picture."""
    if picture.name not in KEPT.get(part, ()):
        return False
    picture.write(folder)
    (folder / f"{picture.name}.png").replace(folder / f"{part}-{picture.name}.png")
    return True


def heads_table(comparison: Comparison) -> Table:
    """One row for each head, the best average rank first."""
    ranks = comparison.ranking.by_group if comparison.ranking else {}
    entries = sorted(comparison.entries, key=lambda entry: ranks.get(entry.group.label, -entry.group.top1))
    columns = ["head", "runs", "top-1 %", "rank", f"difference to {BASELINE}", "95 % interval", "Holm"]
    columns += ["parameters", "ms per image", "learning rate"]
    return Table(columns, [_row(entry, ranks) for entry in entries], left=["head"])


def _row(entry: Entry, ranks: Mapping[str, float]) -> list[str]:
    group, paired = entry.group, entry.paired
    rank = ranks.get(group.label)
    p = None if paired is None else paired.p if paired.corrected is None else paired.corrected
    return [
        group.head,
        str(len(group.runs)),
        accuracy(group),
        NONE if rank is None else f"{rank:.2f}",
        NONE if entry.difference is None else signed(entry.difference),
        f"{signed(paired.low)} to {signed(paired.high)}" if paired else NONE,
        NONE if p is None else p_value(p),
        f"{next(iter(group.outcomes.values())).parameters:,}",
        f"{milliseconds(group):.3f}",
        rates(group),
    ]


def accuracy(group: Group) -> str:
    """Mean and standard deviation over the seeds."""
    return f"{group.top1:.2f}" + ("" if group.deviation is None else f" ± {group.deviation:.2f}")


def milliseconds(group: Group) -> float:
    """Per image in training, mean over the seeds."""
    return 1000 / group.mean("images_per_second")


def rates(group: Group) -> str:
    return ", ".join(sorted({f"{run.settings[RATE]:g}" for run in group.runs.values()}))


def grid_table(comparison: Comparison) -> Table:
    """Top-1 by N in rows and r in columns."""
    groups = [entry.group for entry in comparison.entries]
    cells = {(g.settings["head.head_num"], g.settings["head.key_ratio"]): accuracy(g) for g in groups}
    numbers, ratios = (sorted({cell[axis] for cell in cells}) for axis in (0, 1))
    rows = [[f"N = {n}", *(cells.get((n, r), NONE) for r in ratios)] for n in numbers]
    return Table(["top-1 %", *(f"r = {ratio:g}" for ratio in ratios)], rows, left=["top-1 %"])


def init_table(comparison: Comparison) -> Table:
    """One row for each initialization, the most accurate first, with the training loss of two epochs."""
    groups = sorted((entry.group for entry in comparison.entries), key=lambda group: -group.top1)
    columns = [
        "init",
        "epochs",
        "runs",
        "top-1 %",
        "loss of the first epoch",
        "loss of the last epoch",
        "learning rate",
    ]
    rows = []
    for group in groups:
        curve = group_curve(group, "train/loss")
        losses = [NONE, NONE] if curve is None else [f"{curve[1, 0]:.3f}", f"{curve[1, -1]:.3f}"]
        epochs = str(group.settings["recipe.epochs"])
        rows.append(
            [group.settings["head.init"], epochs, str(len(group.runs)), accuracy(group), *losses, rates(group)]
        )
    return Table(columns, rows, left=["init"])


def noah_duels(groups: Sequence[Group]) -> list[Duel]:
    """NOAH against every other head, the largest gain first; [] without runs of NOAH."""
    noah = next((group for group in groups if group.head == "noah"), None)
    found = []
    for other in groups if noah else ():
        assert noah is not None
        if other is noah or not (seeds := noah.runs.keys() & other.runs.keys()):
            continue
        ours, theirs = ([side.runs[seed].predictions() for seed in sorted(seeds)] for side in (noah, other))
        if not all(np.array_equal(one.labels, ours[0].labels) for one in (*ours, *theirs)):
            raise ConfigError(f"the validation images of {other.label} differ from those of {noah.label}")
        paired = compare_paired([one.right for one in ours], [one.right for one in theirs], same_images=True)
        points = 100 * (paired.better - paired.worse) / (paired.images * paired.seeds)
        found.append((other.head, points, paired))
    corrected = holm([paired.p for _, _, paired in found])
    duels = [Duel(*each, p) for each, p in zip(found, corrected, strict=True)]
    return sorted(duels, key=lambda duel: -duel.points)


def duels_table(duels: Sequence[Duel]) -> Table:
    rows = [
        [d.head, signed(d.points), f"{signed(d.paired.low)} to {signed(d.paired.high)}", p_value(d.p)] for d in duels
    ]
    return Table(["NOAH against", "points", "95 % interval", "Holm"], rows, left=["NOAH against"])


def reading(comparison: Comparison, duels: Sequence[Duel], timed: bool) -> list[str]:
    """Where NOAH wins and loses, and the smallest and, if ``timed``, fastest of the best heads, in sentences."""
    sentences = []
    if duels:
        above, below = ([d.head for d in duels if d.significant and sign * d.points > 0] for sign in (1, -1))
        level = [d.head for d in duels if not d.significant]
        for what, heads in (("more accurate than", above), ("less accurate than", below)):
            sentences.append(f"NOAH is significantly {what} {_names(heads)}.")
        if level:
            sentences.append(f"The differences of NOAH to {_names(level)} are not significant.")
    if ranking := comparison.ranking:
        groups = {entry.group.label: entry.group for entry in comparison.entries}
        best = min(ranking.by_group.values())
        close = [
            groups[label]
            for label, rank in ranking.by_group.items()
            if rank - best < ranking.test.critical_difference
        ]
        small = min(close, key=lambda group: next(iter(group.outcomes.values())).parameters)
        fast = min(close, key=milliseconds)
        sentences.append(
            f"Within the critical difference of the best rank are {_names([group.head for group in close])}; of "
            f"these {small.head} has the fewest parameters"
            + (f" and {fast.head} takes the least time per image." if timed else ".")
        )
    return sentences


def among_heads(inits: Comparison, heads: Comparison) -> str:
    """Where the best initialization of NOAH would be among the heads that were trained for as long, in a sentence."""
    others = [entry.group for entry in heads.entries if entry.group.head != "noah"]
    epochs = others[0].settings["recipe.epochs"]
    as_long = [entry.group for entry in inits.entries if entry.group.settings["recipe.epochs"] == epochs]
    best = max(as_long, key=lambda group: group.top1)
    above, below = ([g.head for g in others if sign * (g.top1 - best.top1) > 0] for sign in (1, -1))
    return (
        f"Over {count(len(best.runs), 'seed')} and {count(epochs, 'epoch')}, NOAH with init="
        f"{best.settings['head.init']} has {best.top1:.2f} %. Of the heads on frozen features {_names(above)} have "
        f"more, and {_names(below)} less (means of all seeds, without a test)."
    )


def edges(groups: Sequence[Group]) -> list[str]:
    """Labels of groups whose learning rate is the highest of its choices, so that a higher one may be better."""
    chosen = [(group, group.settings["recipe.optimizer.lr_choices"]) for group in groups]
    return [
        _name(group)
        for group, choices in chosen
        if choices and any(run.settings[RATE] == max(choices) for run in group.runs.values())
    ]


def differences(groups: Sequence[Group]) -> list[str]:
    """The highest and the lowest of settings of one head, in a sentence."""
    high, low = max(groups, key=lambda group: group.top1), min(groups, key=lambda group: group.top1)
    noise = np.sqrt(np.mean([(group.deviation or 0) ** 2 for group in groups]))
    return [
        f"The highest of {count(len(groups), 'setting')} is {_name(high)} with {high.top1:.2f} %, the lowest "
        f"{_name(low)} with {low.top1:.2f} %: {high.top1 - low.top1:.2f} points apart, where seeds of one setting "
        f"have a standard deviation of {noise:.2f}."
    ]


def _name(group: Group) -> str:
    """The label without the model, the settings that follow the number of epochs, and the only head."""
    words = [word for word in group.short.split() if not word.startswith(("check_val_", "max_epochs="))]
    return " ".join(words[1:] or words).removeprefix("head=")


def _names(heads: Sequence[str]) -> str:
    return ", ".join(heads) or "no other head"


def _reference(sweep: Path) -> dict[str, Any]:
    """k-NN, and the computing of the largest features, as the lab has recorded them; {} if it has not."""
    files = (sweep / FOLDER).glob("*-references.json")
    found: list[dict[str, Any]] = [json.loads(file.read_text()) for file in files]
    return max(found, key=lambda each: each["features"].get("bytes", 0), default={})
