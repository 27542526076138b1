"""Comparison of runs, on run directories with known numbers."""

import base64
import csv as csv_module
import io
import json
import math
import re
import statistics
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from scipy.stats import binomtest

from noah_lightning.analysis import compare, csv, html, latex, markdown, show, write_html
from noah_lightning.analysis.figures import draw_curves, group_curve, heat_maps
from noah_lightning.analysis.groups import Group
from noah_lightning.analysis.report import class_tables
from noah_lightning.analysis.statistics import ClassGain, Entry, Paired, bootstrap, compare_paired, mcnemar
from noah_lightning.analysis.summary import p_value, remarks, signed, summary
from noah_lightning.analysis.tables import Table, latex_text
from noah_lightning.errors import ConfigError

LABELS = np.arange(40) % 4


def right(*images: int) -> np.ndarray:
    """bool (40,), true for these images."""
    return np.isin(np.arange(40), images)


def first(count: int) -> np.ndarray:
    return right(*range(count))


def make_run(
    path: Path,
    head: str = "noah",
    seed: int = 0,
    correct: np.ndarray | None = None,
    finished: bool = True,
    labels: np.ndarray = LABELS,
    log: str | None = None,
    curve: tuple[float, ...] = (10.0, 20.0),
    results: dict[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """A run directory; ``changes`` are settings with __ for the dot."""
    config: dict[str, Any] = {
        "seed": seed,
        "head": {"name": head, "dropout": 0.0},
        "data": {"name": "digits", "num_classes": 4, "seed": seed},
        "recipe": {"epochs": 2, "optimizer": {"name": "sgd", "lr": 0.1}},
        "trainer": {"max_epochs": 2, "devices": 1},
        "logger": {"name": "csv"},
        "model": {"name": "resnet18", "args": {}, "noah": {"head_num": 4}},
    }
    if head == "noah":
        config["head"] |= {"head_num": 4, "key_ratio": 0.5}
    for key, value in changes.items():
        *parents, last = key.split("__")
        part = config
        for parent in parents:
            part = part[parent]
        part[last] = value
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    if log is not None:
        (path / "train.log").write_text(log)
    rows = ["epoch,step,train/loss,val/top1"]
    for epoch, value in enumerate(curve):
        rows += [f"{epoch},{epoch},,{value}", f"{epoch},{epoch},{1 / (epoch + 1)},"]
    (path / "metrics.csv").write_text("\n".join(rows) + "\n")
    if finished:
        hits = first(20) if correct is None else correct
        guesses = np.where(hits, labels, (labels + 1) % 4)
        names = np.array(["ant", "bee", "cat & <dog>", "eel"])
        np.savez_compressed(path / "predictions.npz", labels=labels, guesses=guesses, class_names=names)
        facts = {"parameters": 1000, "epochs": 2, "best_epoch": 2, "correct": int(hits.sum()), "correct_top5": 40}
        facts |= {"images": 40, "train_seconds": 75.0, "images_per_second": 100.0, "a_later_fact": 1}
        (path / "results.json").write_text(json.dumps(facts | (results or {})))
    return path


def groups(folder: Path) -> list[Group]:
    return [entry.group for entry in compare([folder]).entries]


# --- which runs


def test_runs_are_found_three_levels_down_and_not_four(tmp_path: Path) -> None:
    make_run(tmp_path / "runs/day/sweep/0", seed=0)
    make_run(tmp_path / "runs/day/sweep/1", seed=1)
    make_run(tmp_path / "runs/a/b/c/d", seed=2)
    assert list(compare([tmp_path / "runs"]).entries[0].group.runs) == [0, 1]


def test_a_run_named_twice_counts_once(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs/a")
    entry = compare([run, tmp_path / "runs", run / ".." / "a"]).entries[0]
    assert len(entry.group.outcomes) == 1
    assert not entry.group.repeated


def test_other_programs_files_and_runs_inside_runs_are_skipped(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    make_run(run / "inner", seed=1)
    make_run(tmp_path / ".hidden", seed=2)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.yaml").write_text("a: 1\n")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.yaml").write_text("a: [1\n")
    assert list(compare([tmp_path]).entries[0].group.runs) == [0]


@pytest.mark.parametrize("kind", ["missing", "empty", "foreign", "no seed"])
def test_folders_without_a_run_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "folder"
    if kind != "missing":
        folder.mkdir()
    if kind == "foreign":
        (folder / "config.yaml").write_text("a: 1\n")
    if kind == "no seed":
        folder.rmdir()
        make_run(folder, seed="x")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=re.escape(str(folder))) as error:
        compare([folder])
    assert "\n" not in str(error.value)


def test_an_unreadable_folder_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(ConfigError, match=r"cannot be read: .*Permission denied"):
        compare([tmp_path])


def test_no_folder_is_refused() -> None:
    with pytest.raises(ConfigError, match="nothing to compare"):
        compare([])


# --- groups


def test_seeds_are_grouped_and_everything_else_sets_apart(tmp_path: Path) -> None:
    make_run(tmp_path / "a", seed=0, correct=first(20))
    make_run(tmp_path / "b", seed=1, correct=first(22), logger__name="wandb", model__noah={"head_num": 8})
    make_run(tmp_path / "c", seed=2, correct=first(30))
    make_run(tmp_path / "d", seed=0, recipe__optimizer={"name": "sgd", "lr": 0.05})
    many, one = sorted(compare([tmp_path]).entries, key=lambda entry: -len(entry.group.outcomes))
    accuracies = [50.0, 55.0, 75.0]
    assert list(many.group.runs) == [0, 1, 2]
    assert many.group.top1 == pytest.approx(60)
    assert many.group.deviation == pytest.approx(math.sqrt(sum((a - 60) ** 2 for a in accuracies) / 2))
    assert one.group.deviation is None
    assert {many.group.label, one.group.label} == {
        "model=resnet18 head=noah lr=0.1",
        "model=resnet18 head=noah lr=0.05",
    }


def test_labels_name_the_differences_between_like_groups_only(tmp_path: Path) -> None:
    make_run(tmp_path / "a", "gap")
    make_run(tmp_path / "b", head__head_num=1)
    make_run(tmp_path / "c", head__head_num=10)
    make_run(tmp_path / "d", head__head_num=2)
    make_run(tmp_path / "e", "gap", model__name="vit", recipe__optimizer={"name": "adamw", "lr": 0.001})
    assert [entry.group.label for entry in compare([tmp_path]).entries] == [
        "model=resnet18 head=gap",
        "model=resnet18 head=noah head_num=1",
        "model=resnet18 head=noah head_num=2",
        "model=resnet18 head=noah head_num=10",
        "model=vit head=gap",
    ]


def test_groups_that_differ_by_a_missing_setting_have_different_labels(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", model__args={"channels": [16, 32]})
    labels = {entry.group.label for entry in compare([tmp_path]).entries}
    assert labels == {"model=resnet18 head=noah", "model=resnet18 head=noah channels=[16,32]"}


def test_settings_with_the_same_last_name_are_written_in_full(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", head__dropout=0.1, recipe__optimizer={"name": "sgd", "lr": 0.1, "dropout": 1})
    make_run(tmp_path / "c", head__dropout=0.1, recipe__optimizer={"name": "sgd", "lr": 0.1, "dropout": 2})
    labels = [entry.group.label for entry in compare([tmp_path]).entries]
    assert "model=resnet18 head=noah head.dropout=0.1 recipe.optimizer.dropout=1" in labels


def test_integers_and_floats_are_one_value(tmp_path: Path) -> None:
    make_run(tmp_path / "a", seed=0, head__dropout=0)
    make_run(tmp_path / "b", seed=1, head__dropout=0.0)
    make_run(tmp_path / "c", seed=1, head__dropout=False)
    assert len(compare([tmp_path]).entries) == 2


def test_of_runs_with_one_seed_the_last_counts_and_the_other_is_reported(tmp_path: Path) -> None:
    old, _ = make_run(tmp_path / "1", correct=first(4)), make_run(tmp_path / "2", correct=first(8))
    comparison = compare([tmp_path])
    assert comparison.entries[0].group.top1 == pytest.approx(20)
    assert any(str(old) in remark and "ignored" in remark for remark in remarks(comparison))


# --- differences and tests


@pytest.mark.parametrize(("better", "worse"), [(0, 0), (1, 0), (3, 9), (9, 3), (50, 50), (700, 610), (30000, 29000)])
def test_mcnemar_is_the_binomial_test(better: int, worse: int) -> None:
    expected = binomtest(better, better + worse).pvalue if better + worse else 1.0
    assert mcnemar(better, worse) == pytest.approx(expected, rel=1e-8)


def test_bootstrap_has_the_width_that_theory_gives() -> None:
    values = np.repeat([-1, 0, 1], [300, 9200, 500])
    low, high = bootstrap([values])
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert low == pytest.approx(0.02 - half, abs=0.1 * half)
    assert high == pytest.approx(0.02 + half, abs=0.1 * half)
    assert bootstrap([values]) == (low, high)


def test_seeds_on_the_same_images_do_not_count_as_more_images() -> None:
    """Four seeds that agree on every image know no more of other images than one of them."""
    ours, theirs = np.repeat([True, False], [60, 40]), np.repeat([False, True], [40, 60])
    one = compare_paired([ours], [theirs], same_images=True)
    same = compare_paired([ours] * 4, [theirs] * 4, same_images=True)
    other = compare_paired([ours] * 4, [theirs] * 4, same_images=False)
    assert (same.low, same.high) == (one.low, one.high)
    assert other.high - other.low == pytest.approx((one.high - one.low) / 2, rel=0.1)
    assert (same.better, same.worse) == (4 * one.better, 4 * one.worse)


@pytest.mark.parametrize(
    ("low", "high", "p", "significant"),
    [
        (0.1, 2, 0.01, True),
        (-2, -0.1, 0.049, True),
        (0.1, 2, 0.06, False),
        (-0.1, 2, 0.01, False),
        (0, 2, 0.01, False),
    ],
)
def test_significance_takes_both_the_interval_and_p(low: float, high: float, p: float, significant: bool) -> None:
    assert Paired(1, 1, 40, 1, low, high, p, one_sign=True).significant is significant


@pytest.mark.parametrize("same", ["images", "labels", "data.seed"])
def test_seeds_share_images_where_both_labels_and_data_seed_say_so(tmp_path: Path, same: str) -> None:
    """Seeds that contradict each other: averaged over shared images, nothing is left to resample."""
    ours, theirs = first(20), ~first(20)
    for seed, (o, t) in enumerate([(ours, theirs), (theirs, ours)]):
        data_seed = seed if same == "labels" else 7
        labels = (LABELS + seed) % 4 if same == "data.seed" else LABELS
        make_run(tmp_path / f"g{seed}", "gap", seed, t, labels=labels, data__seed=data_seed)
        make_run(tmp_path / f"n{seed}", "noah", seed, o, labels=labels, data__seed=data_seed)
    paired = compare([tmp_path]).entries[1].paired
    assert paired is not None
    if same == "images":
        assert (paired.low, paired.high) == (0, 0)
    else:
        assert paired.low < -10 < 10 < paired.high


def test_only_ten_classes_are_shown_a_side(tmp_path: Path) -> None:
    gap = compare([make_run(tmp_path / "gap", "gap")]).entries[0].group
    gains = [ClassGain(str(k), 100, 50 + k, 50) for k in range(15, -16, -1)]
    _, tables = class_tables(Entry(gap, gap, gains=gains))
    helped, hurt = ([name for name, *_ in table.rows] for table in tables)
    assert helped == [str(k) for k in range(15, 5, -1)]
    assert hurt == [str(k) for k in range(-15, -5)]


def test_a_group_is_paired_with_its_baseline_by_seed(tmp_path: Path) -> None:
    make_run(tmp_path / "gap0", "gap", 0, right(*range(20)))
    make_run(tmp_path / "gap1", "gap", 1, right(*range(10)))
    make_run(tmp_path / "noah0", "noah", 0, right(*range(2, 30)))  # +10 −2
    make_run(tmp_path / "noah1", "noah", 1, right(*range(9), *range(20, 24)))  # +4 −1
    make_run(tmp_path / "noah2", "noah", 2, first(40))  # without a partner
    comparison = compare([tmp_path])
    baseline, entry = comparison.entries
    assert baseline.baseline is None
    assert baseline.difference is None
    assert entry.paired is not None
    assert entry.seeds == (0, 1)
    assert entry.difference == pytest.approx(statistics.fmean([100 * 8 / 40, 100 * 3 / 40]))
    assert (entry.paired.better, entry.paired.worse) == (14, 3)
    assert entry.paired.p == pytest.approx(binomtest(3, 17).pvalue)
    assert entry.paired.low < entry.difference < entry.paired.high
    assert entry.group.top1 == pytest.approx(100 * (28 + 13 + 40) / 120)
    assert any("use seeds 0, 1" in remark for remark in remarks(comparison))


def test_class_gains_count_images_of_paired_seeds(tmp_path: Path) -> None:
    make_run(tmp_path / "gap", "gap", correct=right(0, 1, 2, 3))  # one of each class
    make_run(tmp_path / "noah", "noah", correct=right(0, 4, 8, 2, 3))  # ant 3, bee 0, cat 1, eel 1
    gains = compare([tmp_path]).entries[1].gains
    assert [(g.name, g.images, g.baseline, g.correct) for g in gains] == [
        ("ant", 10, 1, 3),
        ("cat & <dog>", 10, 1, 1),
        ("eel", 10, 1, 1),
        ("bee", 10, 1, 0),
    ]
    assert [g.points for g in gains] == pytest.approx([20, 0, 0, -10])
    page = html(compare([tmp_path]))
    helped, hurt = page.index(">helped most<"), page.index(">hurt most<")
    assert ">ant<" in page[helped:hurt]
    assert ">bee<" not in page[helped:hurt]
    assert ">bee<" in page[hurt:]
    assert ">eel<" not in page


@pytest.mark.parametrize("spoil", ["labels", "missing", "other epoch"])
def test_predictions_that_cannot_be_paired_are_not_tested(tmp_path: Path, spoil: str) -> None:
    make_run(tmp_path / "gap", "gap", correct=first(20))
    labels = LABELS[::-1].copy() if spoil == "labels" else LABELS
    noah = make_run(tmp_path / "noah", correct=first(25), labels=labels)
    if spoil == "missing":
        (noah / "predictions.npz").unlink()
    if spoil == "other epoch":
        facts = json.loads((noah / "results.json").read_text()) | {"correct": 26}
        (noah / "results.json").write_text(json.dumps(facts))
    comparison = compare([tmp_path])
    entry = comparison.entries[1]
    assert entry.paired is None
    assert entry.difference == pytest.approx(15 if spoil == "other epoch" else 12.5)
    reasons = {
        "labels": "differ from those of the baseline",
        "missing": "does not contain predictions",
        "other epoch": "not of the epoch",
    }
    assert reasons[spoil] in summary(comparison)[0]
    assert "not tested" in summary(comparison)[0]


def test_no_seed_in_common_is_a_difference_without_a_test(tmp_path: Path) -> None:
    make_run(tmp_path / "gap", "gap", 0, first(20))
    make_run(tmp_path / "noah", "noah", 1, first(22))
    entry = compare([tmp_path]).entries[1]
    assert (entry.difference, entry.paired) == (pytest.approx(5), None)
    assert "no seed in common" in summary(compare([tmp_path]))[0]


def test_the_baseline_differs_in_the_head_alone_where_there_is_one(tmp_path: Path) -> None:
    make_run(tmp_path / "far", "gap", trainer__devices=8, correct=first(30))
    make_run(tmp_path / "near", "gap", correct=first(10))
    make_run(tmp_path / "vit", "gap", model__name="vit")
    make_run(tmp_path / "noah", trainer__devices=1)
    make_run(tmp_path / "other", trainer__devices=4)
    make_run(tmp_path / "alone", recipe__epochs=3)
    found = {next(iter(e.group.runs.values())).path.name: e for e in compare([tmp_path]).entries}

    def baseline(name: str) -> str | None:
        group = found[name].baseline
        return group.runs[0].path.name if group else None

    assert baseline("noah") == "near"
    assert baseline("other") == "far"  # of the two with its data and recipe the more accurate one
    assert baseline("alone") is None
    assert baseline("vit") is None


# --- the summary


def test_a_small_difference_is_not_significant(tmp_path: Path) -> None:
    make_run(tmp_path / "gap", "gap", correct=first(20))
    make_run(tmp_path / "noah", correct=right(*range(1, 22)))  # two won, one lost
    (sentence,) = summary(compare([tmp_path]))
    assert sentence.startswith("head=noah is +2.50 points over head=gap (95 % interval −")
    assert f"McNemar p = {binomtest(1, 3).pvalue:.2g}, 40 images × 1 seed): not significant." in sentence


def test_one_seed_is_never_enough(tmp_path: Path) -> None:
    make_run(tmp_path / "gap", "gap", correct=first(10))
    make_run(tmp_path / "noah", correct=first(30))
    (sentence,) = summary(compare([tmp_path]))
    assert "significant on these images, but with one seed each, another training run may differ" in sentence
    assert "p < 0.001" in sentence


@pytest.mark.parametrize(("second", "verdict"), [(30, "same sign for every seed"), (9, "seeds disagree in the sign")])
def test_seeds_that_disagree_are_reported(tmp_path: Path, second: int, verdict: str) -> None:
    for seed, count in ((0, 40), (1, second)):
        make_run(tmp_path / f"gap{seed}", "gap", seed, first(10))
        make_run(tmp_path / f"noah{seed}", "noah", seed, first(count))
    assert verdict in summary(compare([tmp_path]))[0]


def test_zero_discordant_pairs_are_level(tmp_path: Path) -> None:
    make_run(tmp_path / "gap", "gap")
    make_run(tmp_path / "noah")
    comparison = compare([tmp_path])
    paired = comparison.entries[1].paired
    assert paired is not None
    assert (paired.better, paired.worse, paired.p, paired.low, paired.high) == (0, 0, 1.0, 0.0, 0.0)
    assert "head=noah is level with head=gap" in summary(comparison)[0]
    assert "helped most: none" in html(comparison)


def test_the_best_of_many_comes_with_a_warning(tmp_path: Path) -> None:
    make_run(tmp_path / "gap", "gap")
    for number in (1, 2, 4, 8):
        make_run(tmp_path / f"noah{number}", head__head_num=number, correct=first(20 + number))
    best, warning = summary(compare([tmp_path]))
    assert best.startswith("head=noah head_num=8 is +20.00 points over")
    assert "highest of 4 groups" in warning


def test_a_loss_is_reported_as_one(tmp_path: Path) -> None:
    make_run(tmp_path / "gap", "gap", correct=first(22))
    make_run(tmp_path / "noah", correct=first(20))
    assert summary(compare([tmp_path]))[0].startswith("head=noah is 5.00 points below head=gap")


@pytest.mark.parametrize(("head", "why"), [("noah", "no finished run with head=gap"), ("gap", "the baseline")])
def test_one_run_alone(tmp_path: Path, head: str, why: str) -> None:
    comparison = compare([make_run(tmp_path / "a", head)])
    alone, no_difference = summary(comparison)
    assert alone == f"head={head}: 50.00 % of 40 images (1 seed)."
    assert why in no_difference
    assert "±" not in markdown(comparison)
    assert "data:image/svg+xml" in html(comparison)


def test_unfinished_runs_are_reported_with_their_last_error(tmp_path: Path) -> None:
    make_run(tmp_path / "ok")
    stamp = "2026-11-22 16:39:43"
    make_run(tmp_path / "bad", finished=False, log=f"{stamp} error: first\n{stamp} error: disk <full>\n{stamp} bye\n")
    make_run(tmp_path / "quiet", finished=False, log=f"{stamp} epoch 1/2\n\n")
    make_run(tmp_path / "bare", finished=False)
    comparison = compare([tmp_path])
    assert len(comparison.entries) == 1
    reasons = {run.path.name: run.reason for run in comparison.unfinished}
    assert reasons["bad"] == "disk <full>"
    assert reasons["quiet"].endswith(f"last line: {stamp} epoch 1/2")
    assert "no train.log" in reasons["bare"]
    assert "disk <full>" in markdown(comparison)
    assert "disk &lt;full&gt;" in html(comparison)


def test_nothing_finished_is_still_a_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    comparison = compare([make_run(tmp_path / "a", finished=False, log="")])
    show(comparison)
    assert "No run has finished; 1 run without results." in capsys.readouterr().out
    assert "No run has finished" in html(comparison)
    assert csv(comparison) == "group\n"


# --- tables


def test_csv_gives_every_number_back(tmp_path: Path) -> None:
    make_run(tmp_path / "gap0", "gap", 0, first(20))
    make_run(tmp_path / "noah0", "noah", 0, first(27), results={"peak_memory": 3 * 2**30, "train_seconds": 80.1})
    make_run(tmp_path / "noah1", "noah", 1, first(30), results={"peak_memory": 2**30, "best_epoch": 1})
    comparison = compare([tmp_path])
    rows = list(csv_module.DictReader(io.StringIO(csv(comparison))))
    entry, row = comparison.entries[1], rows[1]
    assert entry.paired is not None
    assert float(row["top1_mean"]) == entry.group.top1
    assert float(row["top1_std"]) == entry.group.deviation
    assert float(row["difference"]) == entry.difference
    assert float(row["mcnemar_p"]) == entry.paired.p
    assert float(row["interval_low"]) == entry.paired.low
    assert float(row["train_seconds"]) == pytest.approx((80.1 + 75) / 2)
    assert (row["seeds"], row["correct"], row["best_epochs"]) == ("0 1", "27 30", "2 1")
    assert (row["baseline"], row["peak_memory_bytes"]) == ("model=resnet18 head=gap", str(3 * 2**30))
    assert rows[0]["peak_memory_bytes"] == rows[0]["difference"] == rows[0]["top1_std"] == ""


def test_the_table_shows_rounded_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "gap", "gap", 0, first(20))
    make_run(tmp_path / "gap1", "gap", 1, first(22))
    make_run(tmp_path / "noah", "noah", 0, first(27), results={"peak_memory": 3 * 2**29})
    comparison = compare([tmp_path])
    show(comparison)
    shown = capsys.readouterr().out
    for words in ("52.50 ± 3.54", "+17.50", "p = 0.016", "1:15", "2 of 2", "1.50 GiB", "1,000"):
        assert words in shown
        assert words in markdown(comparison)
    assert re.search(r"^\| group +\| +runs \|", markdown(comparison), re.MULTILINE)  # a count; --csv lists the seeds
    assert "GPU memory" not in markdown(compare([tmp_path / "gap"]))


def test_latex_escapes_what_latex_reads() -> None:
    assert latex_text(r"50 % of a_b & c#d $ {x} ~ ^ \ ") == (
        r"50 \% of a\_b \& c\#d \$ \{x\} \textasciitilde{} \textasciicircum{} \textbackslash{} "
    )
    assert latex_text("[1] *") == "{[}1{]} {*}"  # at the start of a row they would belong to \\
    assert latex_text("−1 ± 2 × 3 <p|") == r"$-$1 $\pm$ 2 $\times$ 3 \textless{}p\textbar{}"


def test_latex_is_one_plain_tabular(tmp_path: Path) -> None:
    make_run(tmp_path / "gap", "gap", model__name="a_b")
    make_run(tmp_path / "noah", model__name="a_b", correct=first(10))
    text = latex(compare([tmp_path]))
    comments, lines = [], []
    for line in text.splitlines():
        (comments if line.startswith("%") else lines).append(line)
    assert lines[0] == r"\begin{tabular}{lrrrrrrrrr}"
    assert lines[-1] == r"\end{tabular}"
    rows = [line for line in lines if line.endswith(r"\\")]
    assert [len(re.findall(r"(?<!\\)&", row)) for row in rows] == [9, 9, 9]
    assert r"model=a\_b head=noah & 1 & 25.00 & $-$25.00" in text
    assert "\n".join(lines).isascii()
    assert len(comments) == 1


def test_brackets_in_a_cell_are_not_markup(capsys: pytest.CaptureFixture[str]) -> None:
    Table(["a"], [["x=[red,blue]"], ["[bold]"]], left=["a"]).show()
    assert "x=[red,blue]" in (out := capsys.readouterr().out)
    assert "[bold]" in out


def test_a_bar_does_not_end_a_cell_of_markdown(tmp_path: Path) -> None:
    assert r"model=a\|b head=noah" in markdown(compare([make_run(tmp_path / "a", model__name="a|b")]))


# --- untrusted runs


@pytest.mark.parametrize("value", ["a", [1], pytest.param(10**400, id="huge"), -1, math.nan, math.inf])
def test_settings_that_are_not_numbers_have_no_place_in_the_heat_map(tmp_path: Path, value: Any) -> None:
    make_run(tmp_path / "bad", head__head_num=value, head__key_ratio=0.25)
    make_run(tmp_path / "bad2", head__head_num=2, head__key_ratio=value)
    make_run(tmp_path / "good", head__head_num=2)
    assert len(compare([tmp_path]).entries) == 3
    assert heat_maps(groups(tmp_path)) == []


def test_control_characters_do_not_reach_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "ok")
    make_run(tmp_path / "bad", finished=False, log="x error: \x1b[2Jgone\n")
    make_run(tmp_path / "name\x1b[2J\udcff")
    comparison = compare([tmp_path])
    show(comparison)
    print(markdown(comparison), latex(comparison), csv(comparison))
    printed = capsys.readouterr().out
    assert r"\x1b[2Jgone" in printed
    assert r"name\x1b[2J\udcff" in printed
    assert "\x1b" not in printed
    write_html(comparison, tmp_path / "page.html")
    assert r"name" in (tmp_path / "page.html").read_text(encoding="utf-8")


# --- the page


class Page(HTMLParser):
    """Tags and references; the tags must close in order."""

    VOID = frozenset({"meta", "link", "br", "hr", "img"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.tags: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href"):
                self.references.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three of the four cells of an N × r grid, with two seeds, their baseline, and an unfinished run."""
    tmp_path = tmp_path_factory.mktemp("grid")
    make_run(tmp_path / "bad", seed=5, finished=False, log="x error: out of memory")
    for seed in (0, 1):
        make_run(tmp_path / f"gap{seed}", "gap", seed, first(10), curve=(10 + seed, 20 + seed))
        for i, (number, ratio) in enumerate([(2, 0.25), (2, 0.5), (8, 0.25)]):
            count = first(20 + 4 * i + seed)
            make_run(tmp_path / f"{i}{seed}", "noah", seed, count, head__head_num=number, head__key_ratio=ratio)
    return tmp_path


@pytest.fixture(scope="module")
def grid_page(grid: Path) -> str:
    return html(compare([grid]))


def test_the_heat_map_holds_mean_accuracies(grid: Path) -> None:
    (heat,) = heat_maps(groups(grid))
    assert (heat.title, heat.head_nums, heat.key_ratios) == ("model=resnet18 head=noah", [2, 8], [0.25, 0.5])
    np.testing.assert_allclose(heat.top1, [[51.25, 61.25], [71.25, np.nan]])


def test_no_heat_map_where_one_setting_varies(tmp_path: Path) -> None:
    make_run(tmp_path / "a", head__head_num=1)
    make_run(tmp_path / "b", head__head_num=2)
    assert heat_maps(groups(tmp_path)) == []


def test_learning_curves_are_means_and_ranges_of_common_epochs(tmp_path: Path) -> None:
    make_run(tmp_path / "a", seed=0, curve=(10, 20, 30))
    make_run(tmp_path / "b", seed=1, curve=(14, 30))
    group = compare([tmp_path]).entries[0].group
    curve = group_curve(group, "val/top1")
    assert curve is not None
    assert curve.tolist() == [[1, 2], [12, 25], [10, 20], [14, 30]]  # epoch, mean, lowest, highest
    loss = group_curve(group, "train/loss")
    assert loss is not None
    assert loss[1].tolist() == [1, 0.5]
    for name in ("a", "b"):
        (tmp_path / name / "metrics.csv").unlink()
    assert draw_curves([group]) is None


def figures(page: Page) -> list[ElementTree.Element]:
    """The images of a page, which are SVG inside it."""
    prefix = "data:image/svg+xml;base64,"
    found = [reference.removeprefix(prefix) for reference in page.references if reference.startswith(prefix)]
    return [ElementTree.fromstring(base64.b64decode(data)) for data in found]


def test_the_page_needs_nothing_from_elsewhere(grid_page: str) -> None:
    page = Page(grid_page)
    assert page.tags.count("img") == 5
    assert page.references
    assert all(reference.startswith("data:") for reference in page.references)
    assert "url(" not in grid_page
    assert "@import" not in grid_page
    assert "script" not in page.tags
    for figure in figures(page):
        for element in figure.iter():
            targets = [value for name, value in element.items() if name.endswith("href") or "url(" in value]
            assert all(target.startswith(("#", "url(#")) for target in targets)


def test_figures_have_text_and_are_readable_on_light_and_dark_pages(grid_page: str) -> None:
    words = [" ".join(figure.itertext()) for figure in figures(Page(grid_page))]
    assert "71.25" in words[0]
    assert "head=noah head_num=8 key_ratio=0.25" in words[1]
    assert "prefers-color-scheme: dark" in grid_page
    assert re.search(r"img \{.*background: white;.*\}", grid_page)


def test_the_page_keeps_its_order(grid: Path, grid_page: str) -> None:
    marks = ['class="summary"', "<thead>", "heat map", "Learning curves", ">Classes<", "out of memory", "<details>"]
    places = [grid_page.index(mark) for mark in marks]
    assert places == sorted(places)
    assert f"noah evaluate {grid / 'gap0'}" in grid_page


def test_all_text_of_the_page_is_escaped(tmp_path: Path) -> None:
    evil = "<script>$x$&"
    make_run(tmp_path / "gap", "gap", model__name=evil)
    make_run(tmp_path / "noah", model__name=evil, correct=first(30), head__head_num=2)
    for i, (number, ratio) in enumerate([(8, 0.5), (2, 0.25)]):
        make_run(tmp_path / str(i), model__name=evil, head__head_num=number, head__key_ratio=ratio)
    make_run(tmp_path / "b", model__name="b")
    text = html(compare([tmp_path]))
    page = Page(text)
    assert "script" not in page.tags
    assert ">model=&lt;script&gt;$x$&amp; head=gap<" in text
    heat_map, curves, *others = figures(page)
    assert "model=<script>$x$& head=gap" in " ".join(curves.itertext())  # not a formula
    assert not [
        element
        for figure in (heat_map, curves, *others)
        for element in figure.iter()
        if element.tag.endswith("script")
    ]


def test_the_page_is_written_or_the_reason_reported(grid: Path, grid_page: str, tmp_path: Path) -> None:
    write_html(compare([grid]), tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == grid_page  # the same every time
    alone = compare([grid / "gap0"])
    with pytest.raises(ConfigError, match=r"cannot be written: .*No such file"):
        write_html(alone, tmp_path / "nowhere" / "page.html")


def test_what_rounds_to_zero_has_no_sign() -> None:
    assert [signed(x) for x in (0.0, -0.001, 0.555, -2.0)] == ["0.00", "0.00", "+0.56", "−2.00"]
    assert [p_value(x) for x in (1.0, 0.21, 0.0009, 0.04)] == ["p = 1", "p = 0.21", "p < 0.001", "p = 0.04"]


def test_comparing_starts_without_torch_and_without_matplotlib() -> None:
    code = (
        "import sys, noah_lightning.analysis; "
        "print({'torch', 'lightning', 'matplotlib', 'scipy', 'jinja2'} & set(sys.modules)); "
        "import noah_lightning.analysis.figures; print({'torch', 'matplotlib.pyplot'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["set()", "set()"]
