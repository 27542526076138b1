"""Ranks, tests of many heads, and their figures: published examples, SciPy, and fabricated run directories."""

import csv as csv_module
import io
import itertools
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.text import Text
from scipy.stats import friedmanchisquare, rankdata

from conftest import Answer
from noah_lightning.analysis import Comparison, compare, csv, html, latex, markdown, write_figures
from noah_lightning.analysis.cost_plots import COSTS, NAMED, PLACES, Cost, draw_cost, place_labels
from noah_lightning.analysis.critical_difference import draw_critical_difference, stack
from noah_lightning.analysis.ranking import Ranking, friedman, nemenyi
from noah_lightning.analysis.statistics import holm
from noah_lightning.analysis.summary import remarks, summary
from noah_lightning.errors import ConfigError
from test_compare import first, make_run

HEADS = (
    *("gap", "abmil", "aim", "avg", "avgmax", "cae", "cait", "clip", "cls_mean", "csra", "ep", "gem", "lse_plus"),
    *("map", "max", "ml_decoder", "noah", "prr", "simpool", "vjepa", "wildcat"),
)

# Ranks of four classifiers on 14 data sets: Demšar, Statistical comparisons of classifiers over multiple data sets,
# J. Mach. Learn. Res. 7 (2006), table 6.
DEMSAR = np.array(
    [
        *([4, 3, 2, 1], [1, 2, 3, 4], [4, 1, 2, 3], [4, 1, 3, 2], [4, 2, 3, 1], [1, 2.5, 4, 2.5], [3, 2, 4, 1]),
        *([2.5, 2.5, 4, 1], [4, 3, 2, 1], [2.5, 2.5, 2.5, 2.5], [4, 2.5, 1, 2.5], [3, 2, 4, 1], [4, 1, 2, 3]),
        [3, 1, 4, 2],
    ]
)


# --- Friedman, Nemenyi, Holm


def test_the_example_of_demsar() -> None:
    test = friedman(-DEMSAR)
    np.testing.assert_allclose(test.average, [3.143, 2.000, 2.893, 1.964], atol=5e-4)
    ties = 3 * (2**3 - 2) + (4**3 - 4)  # the published statistic is not corrected for them
    uncorrected = test.statistic * (1 - ties / (14 * (4**3 - 4)))
    assert uncorrected == pytest.approx(9.28, abs=5e-3)
    assert test.critical_difference == pytest.approx(1.25, abs=5e-3)


@pytest.mark.parametrize(
    ("settings", "q"),
    [(2, 1.960), (3, 2.343), (4, 2.569), (5, 2.728), (6, 2.850), (7, 2.949), (8, 3.031), (9, 3.102), (10, 3.164)],
)
def test_critical_values_of_nemenyi_are_the_published_ones(settings: int, q: float) -> None:
    assert nemenyi(settings, 7) / math.sqrt(settings * (settings + 1) / 42) == pytest.approx(q, abs=1.1e-3)


@pytest.mark.parametrize("ties", [False, True])
def test_friedman_is_that_of_scipy_and_its_formula(ties: bool) -> None:
    scores = np.random.default_rng(4).normal(size=(9, 6))
    if ties:
        scores = scores.round()
    test = friedman(scores)
    expected = friedmanchisquare(*scores.T)
    assert (test.statistic, test.p) == (pytest.approx(expected.statistic), pytest.approx(expected.pvalue))
    np.testing.assert_allclose(test.average, np.mean([7 - rankdata(row) for row in scores], axis=0))
    if not ties:
        formula = 12 * 9 / (6 * 7) * (np.sum(test.average**2) - 6 * 7**2 / 4)
        assert test.statistic == pytest.approx(formula)


def test_settings_that_are_always_level_do_not_differ() -> None:
    test = friedman(np.array([[50.0] * 4, [60.0] * 4]))
    assert test.average.tolist() == [2.5] * 4
    assert (test.statistic, test.p) == (0, 1)


@pytest.mark.parametrize(
    ("p", "corrected"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),  # Wikipedia, Holm–Bonferroni method
        ([0.50, 0.003, 0.32, 0.054, 0.0003], [0.64, 0.012, 0.64, 0.162, 0.0015]),  # manual of pingouin
        ([0.7], [0.7]),
        ([], []),
    ],
)
def test_published_examples_of_holm(p: list[float], corrected: list[float]) -> None:
    assert holm(p) == pytest.approx(corrected)


@pytest.mark.parametrize("seed", range(5))
def test_holm_rejects_what_his_steps_reject(seed: int) -> None:
    """The smallest of m values is compared with α / m, the next with α / (m - 1), until one is not below."""
    p = np.random.default_rng(seed).beta(0.3, 4, size=12)
    for alpha in (0.01, 0.05, 0.2):
        steps = [p[i] <= alpha / (12 - step) for step, i in enumerate(np.argsort(p))]
        rejected = {*np.argsort(p)[: [*steps, False].index(False)].tolist()}
        assert {i for i, value in enumerate(holm(p.tolist())) if value <= alpha} == rejected


# --- several tests in one comparison


def test_one_test_is_not_corrected(tmp_path: Path) -> None:
    make_run(tmp_path / "gap", "gap", correct=first(20))
    make_run(tmp_path / "noah", correct=first(27))
    comparison = compare([tmp_path])
    paired = comparison.entries[1].paired
    assert paired is not None
    assert paired.corrected is None
    assert paired.significant  # p = 0.016
    assert "Holm" not in markdown(comparison) + html(comparison) + summary(comparison)[0]


def test_several_tests_are_corrected_and_decided_by_it(tmp_path: Path) -> None:
    make_run(tmp_path / "gap", "gap", correct=first(20))
    for i, count in enumerate((40, 27, 22, 19)):
        make_run(tmp_path / str(i), head__head_num=i + 1, correct=first(count))
    comparison = compare([tmp_path])
    paired = [entry.paired for entry in comparison.entries if entry.paired]
    assert [pair.corrected for pair in paired] == pytest.approx(holm([pair.p for pair in paired]))
    assert [pair.p < 0.05 for pair in paired] == [True, True, False, False]
    assert [pair.significant for pair in paired] == [True, True, False, False]
    assert "Of 4 tested groups, 2 are significantly above the baseline and 0 below" in summary(comparison)[1]
    make_run(tmp_path / "4", head__head_num=9, correct=first(21))
    more = compare([tmp_path])
    assert [entry.paired.significant for entry in more.entries if entry.paired] == [True, False, False, False, False]
    assert "p < 0.001 after Holm's correction" in summary(more)[0]


# --- ranks over blocks


Counts = dict[str, tuple[int, ...]]  # correct images of each head, by seed


def fabricate(folder: Path, counts: Counts, data: str = "digits", model: str = "resnet18") -> Path:
    """A run for each head and seed with so many correct images; 0 for no run."""
    for head, of_seeds in counts.items():
        for seed, count in enumerate(of_seeds):
            if count:
                path = folder / f"{data}{model}{head}{seed}"
                make_run(path, head, seed, first(count), data__name=data, model__name=model)
    return folder


THREE = {"gap": (10, 12, 14), "noah": (20, 12, 30), "max": (15, 22, 16)}


def ranking_of(comparison: Comparison) -> Ranking:
    assert comparison.ranking is not None
    return comparison.ranking


def test_ranks_over_seeds(tmp_path: Path) -> None:
    comparison = compare([fabricate(tmp_path, THREE)])
    ranking = ranking_of(comparison)
    assert [*ranking.ranks.items()] == [
        ("head=noah", pytest.approx((1 + 2.5 + 1) / 3)),
        ("head=max", pytest.approx((2 + 1 + 2) / 3)),
        ("head=gap", pytest.approx((3 + 2.5 + 3) / 3)),
    ]
    expected = friedmanchisquare(*THREE.values())
    assert (ranking.test.statistic, ranking.test.p) == pytest.approx((expected.statistic, expected.pvalue))
    assert (ranking.blocks, ranking.left_out) == (3, ())
    *_, best, found, limit = summary(comparison)
    assert (
        best == "Best average ranks of 3 head settings over 3 blocks: head=noah 1.50, head=max 1.67, head=gap 2.83."
    )
    assert f"do not differ significantly (χ² = {expected.statistic:.2f}, p = {expected.pvalue:.2g})" in found
    assert "2 of the 2 others are within the critical difference of the best (1.91, Nemenyi, 5 %)" in found
    assert limit.startswith("The blocks differ only in the seed: the test measures the noise of seeds only")


def test_seeds_with_the_same_validation_images_are_named(tmp_path: Path) -> None:
    for head, seed in itertools.product(("gap", "noah", "max"), (0, 1)):
        make_run(tmp_path / f"{head}{seed}", head, seed, data__seed=7)
    assert "differ only in the seed and share the validation images" in summary(compare([tmp_path]))[-1]


def test_ranks_over_data_sets_and_seeds(tmp_path: Path) -> None:
    fabricate(tmp_path, THREE)
    fabricate(tmp_path, {"gap": (9,), "noah": (8,), "max": (7,)}, data="fashion_mnist")
    comparison = compare([tmp_path])
    ranking = ranking_of(comparison)
    assert (ranking.blocks, ranking.data_sets) == (4, 2)
    assert ranking.ranks["head=gap"] == pytest.approx((3 + 2.5 + 3 + 1) / 4)
    assert "The 4 blocks are of 2 data sets: blocks of one data set are not independent" in summary(comparison)[-1]
    assert {ranking.by_group[e.group.label] for e in comparison.entries if e.group.head == "max"} == {
        ranking.ranks["head=max"]  # of both data sets
    }


def test_one_run_of_each_head_and_data_set_is_a_block(tmp_path: Path) -> None:
    for i, data in enumerate(("digits", "fashion_mnist", "imagenet")):
        fabricate(tmp_path, {"gap": (10 + i,), "noah": (20,), "max": (12,)}, data=data)
    comparison = compare([tmp_path])
    assert ranking_of(comparison).blocks == 3
    assert not any("blocks differ" in line or "independent" in line for line in summary(comparison))


def test_ranks_do_not_need_a_baseline(tmp_path: Path) -> None:
    comparison = compare([fabricate(tmp_path, {"noah": (10, 12), "max": (11, 13), "cait": (12, 14)})])
    assert any("There is nothing to compare with" in line for line in summary(comparison))
    assert any("head=cait 1.00" in line for line in summary(comparison))


def test_blocks_without_a_run_of_each_head_are_left_out_and_named(tmp_path: Path) -> None:
    comparison = compare([fabricate(tmp_path, {**THREE, "cait": (5, 0, 6)})])
    ranking = ranking_of(comparison)
    assert ranking.blocks == 2
    assert ranking.ranks["head=cait"] == 4
    assert "left out of the ranks: seed 1 has no finished run of head=cait" in remarks(comparison)


def test_many_blocks_that_are_left_out_are_counted(tmp_path: Path) -> None:
    counts = dict.fromkeys(("gap", "noah", "max"), (9,) * 8) | dict.fromkeys(HEADS[1:6], (8, 8))
    comparison = compare([fabricate(tmp_path, counts)])
    left_out = ranking_of(comparison).left_out
    assert left_out[0] == "seed 2 has no finished run of head=abmil, head=aim, head=avg and 2 more"
    assert left_out[3:] == ("3 more blocks lack runs",)


def test_blocks_of_several_models_are_named_by_the_model(tmp_path: Path) -> None:
    fabricate(tmp_path, THREE)
    fabricate(tmp_path, {"gap": (9,), "noah": (8,), "max": (0,)}, model="vit")
    assert ranking_of(compare([tmp_path])).left_out == ("model=vit seed 0 has no finished run of head=max",)


@pytest.mark.parametrize(
    ("counts", "reason"),
    [
        ({"gap": (9, 9), "noah": (8, 8)}, "no ranks: ranks need at least 3 settings of the head, and there are 2"),
        (
            {"gap": (9, 9), "noah": (8, 8), "max": (0, 7)},
            "of each of the 3 settings of the head, and there are 1; seed 0 has no finished run of head=max",
        ),
    ],
)
def test_the_reason_for_no_ranks_is_reported(tmp_path: Path, counts: Counts, reason: str) -> None:
    fabricate(tmp_path, counts)
    if len(counts) == 2:
        make_run(tmp_path / "other", "gap", recipe__epochs=3)
    comparison = compare([tmp_path])
    assert comparison.ranking is None
    assert any(reason in remark for remark in remarks(comparison))
    assert all(row["average_rank"] == "" for row in csv_module.DictReader(io.StringIO(csv(comparison))))
    assert "| rank |" not in markdown(comparison)


def test_two_groups_have_neither_ranks_nor_a_reason(tmp_path: Path) -> None:
    comparison = compare([fabricate(tmp_path, {"gap": (9, 9), "noah": (8, 8)})])
    assert (comparison.ranking, comparison.unranked, remarks(comparison)) == (None, "", [])


# --- tables and labels


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """21 heads × 5 seeds; as with frozen features, many heads have almost the same number of parameters."""
    folder = tmp_path_factory.mktemp("many")
    random = np.random.default_rng(0)
    for i, (head, seed) in enumerate(itertools.product(HEADS, range(5))):
        speed = float(random.uniform(300, 400))
        facts = {"parameters": 513_000 + 500 * (i // 5 % 3), "images_per_second": speed}
        make_run(folder / str(i), head, seed, first(int(random.integers(18, 26))), results=facts)
    return compare([folder])


def test_many_heads_are_labeled_by_their_name_alone(many: Comparison) -> None:
    assert {entry.group.label for entry in many.entries} == {f"model=resnet18 head={head}" for head in HEADS}
    assert {entry.group.short for entry in many.entries} == {f"head={head}" for head in HEADS}
    assert ranking_of(many).ranks.keys() == {f"head={head}" for head in HEADS}


def test_tables_are_sorted_by_rank_and_have_corrected_p_values(many: Comparison) -> None:
    rows = list(csv_module.DictReader(io.StringIO(csv(many))))
    ranks = [float(row["average_rank"]) for row in rows]
    assert ranks == sorted(ranks)
    assert [row["group"].partition(" ")[2] for row in rows] == list(ranking_of(many).ranks)
    tested = [row for row in rows if row["mcnemar_p"]]
    assert len(tested) == 20
    assert [float(row["mcnemar_p_holm"]) for row in tested] == pytest.approx(
        holm([float(row["mcnemar_p"]) for row in tested])
    )
    best = next(iter(ranking_of(many).ranks.items()))
    assert f"| model=resnet18 {best[0]} | 5 | {best[1]:.2f} |" in markdown(many)
    assert "| McNemar | Holm |" in markdown(many)
    assert "group & runs & rank & top-1" in latex(many)
    assert "McNemar & Holm &" in latex(many)


def test_groups_without_a_rank_are_last(tmp_path: Path) -> None:
    fabricate(tmp_path, THREE)
    make_run(tmp_path / "a", "gap", correct=first(40), recipe__epochs=3)
    rows = list(csv_module.DictReader(io.StringIO(csv(compare([tmp_path])))))
    assert (rows[-1]["group"], rows[-1]["average_rank"]) == ("model=resnet18 head=gap epochs=3", "")


# --- figures


def test_bars_join_settings_within_the_critical_difference() -> None:
    ranks = {"a": 1.0, "b": 2.0, "c": 2.5, "d": 4.5, "e": 5.0, "f": 9.0}
    test = friedman(np.array([[1.0, 2, 3], [2, 1, 3]]))
    test = type(test)(test.average, 1, 1, critical_difference=2.5)
    ranking = Ranking(ranks, {}, test, 2, 1, seeds_only=True, same_images=True, left_out=())
    assert ranking.cliques == [(1, 2.5), (2.5, 4.5), (4.5, 5)]
    assert stack(ranking.cliques) == [0, 1, 0]
    assert stack([(1, 2), (1.5, 3), (2.5, 4)]) == [0, 1, 0]


def test_the_picture_has_each_head_with_its_rank_and_no_overlapping_labels(many: Comparison) -> None:
    ranking = ranking_of(many)
    figure = draw_critical_difference(ranking)
    figure.draw_without_rendering()
    texts = [text for text in figure.axes[0].texts if text.get_text()]
    words = {text.get_text() for text in texts}
    for label, rank in ranking.ranks.items():
        name = label.removeprefix("head=")
        assert words & {f"{name}   {rank:.2f}", f"{rank:.2f}   {name}"}
    boxes = [text.get_window_extent() for text in texts]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert all(figure.bbox.containsx(box.x0) and figure.bbox.containsx(box.x1) for box in boxes)
    assert all(figure.bbox.containsy(box.y0) and figure.bbox.containsy(box.y1) for box in boxes)


@pytest.mark.parametrize("cost", COSTS, ids=lambda cost: cost.name)
def test_labels_of_many_heads_do_not_overlap(many: Comparison, cost: Cost) -> None:
    figure = draw_cost([entry.group for entry in many.entries], cost)
    figure.draw_without_rendering()
    [axes] = figure.axes
    assert {text.get_text() for text in axes.texts} == set(HEADS)
    boxes = [Text.get_window_extent(text) for text in axes.texts]  # without their connecting lines
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert axes.get_ylabel() == "top-1, %"
    assert axes.get_xlabel() in ("parameters", "milliseconds per image, training")


def test_points_are_means_with_deviations(tmp_path: Path) -> None:
    for seed, (count, speed) in enumerate([(20, 50.0), (24, 150.0)]):
        make_run(tmp_path / str(seed), "max", seed, first(count), results={"images_per_second": speed})
    make_run(tmp_path / "zero", "gap", results={"images_per_second": 0.0})
    groups = [entry.group for entry in compare([tmp_path]).entries]
    [axes] = draw_cost(groups, COSTS[1]).axes
    [container] = axes.containers  # the group without a speed has no place
    line, _, (bars,) = container.lines  # type: ignore[union-attr]
    assert line.get_xydata().tolist() == [[pytest.approx(10), pytest.approx(55)]]
    (low, high) = bars.get_segments()[0][:, 1]
    assert (high - low) / 2 == pytest.approx(100 * np.std([0.5, 0.6], ddof=1))
    assert draw_cost(groups[:1], COSTS[1]).axes[0].containers == []


@pytest.mark.parametrize(
    ("field", "value"),
    [("parameters", 10**400), ("parameters", -1), ("images_per_second", 1e-320), ("images_per_second", 1e300)],
)
def test_runs_with_impossible_costs_are_not_in_the_plots(tmp_path: Path, field: str, value: float) -> None:
    make_run(tmp_path / "crafted", "cait", results={field: value})
    groups = [entry.group for entry in compare([tmp_path]).entries]
    assert draw_cost(groups, COSTS[field == "images_per_second"]).axes[0].containers == []
    assert "milliseconds per image" in html(compare([fabricate(tmp_path, THREE)]))


def test_settings_of_other_types_are_compared(tmp_path: Path) -> None:
    for head, seed in itertools.product(("gap", "noah", "max"), (0, 1)):
        make_run(tmp_path / f"{head}{seed}", head, seed, data__seed=[1], data__name=["digits"])
    comparison = compare([tmp_path])
    assert ranking_of(comparison).blocks == 2
    assert comparison.tests == 2
    assert "milliseconds per image" in html(comparison)


def test_a_label_is_next_to_a_point_that_is_alone() -> None:
    at, bounds = np.array([[50.0, 50.0], [200.0, 50.0]]), np.array([0.0, 0.0, 300.0, 100.0])
    offsets = place_labels(at, np.full((2, 2), [30.0, 10.0]), np.zeros(2), bounds)
    assert offsets.tolist() == [PLACES[np.flatnonzero(np.abs(PLACES) @ [1, 1] == 8)[0]].tolist()] * 2
    near_the_edge = place_labels(np.array([[290.0, 50.0]]), np.array([[30.0, 10.0]]), np.zeros(1), bounds)
    assert near_the_edge[0, 0] < 0


def test_of_very_many_points_the_highest_are_labeled(tmp_path: Path) -> None:
    for i in range(NAMED + 3):
        make_run(tmp_path / str(i), head__head_num=i + 1, correct=first(i + 1))
    comparison = compare([tmp_path])
    [axes] = draw_cost([entry.group for entry in comparison.entries], COSTS[0]).axes
    labeled = {text.get_text() for text in axes.texts if text.get_text()}
    assert labeled == {f"noah head_num={i}" for i in range(4, NAMED + 4)}


def test_each_data_set_has_its_own_scatter_plots(tmp_path: Path) -> None:
    for data in ("digits", "fashion_mnist"):
        fabricate(tmp_path, THREE, data=data)
    write_figures(compare([tmp_path]), tmp_path / "new" / "figures")
    names = {path.name for path in (tmp_path / "new" / "figures").iterdir()}
    assert names == {
        *("accuracy-milliseconds-1.png", "accuracy-milliseconds-2.png", "accuracy-parameters-1.png"),
        *("accuracy-parameters-2.png", "critical-difference.png", "learning-curves.png"),
    }
    assert (tmp_path / "new/figures/critical-difference.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_has_the_figures(tmp_path: Path) -> None:
    page = html(compare([fabricate(tmp_path, THREE)]))
    places = [page.index(f"<h2>{title}</h2>") for title in ("Learning curves", "Average ranks", "Accuracy and cost")]
    assert places == sorted(places)
    assert page.count("<img") == 4
    assert "milliseconds per image, training" in page
    assert "corrected for the 2 tests" in page
    assert "Ranks are averages over 3 blocks" in page


def test_two_groups_have_the_figures_of_before(tmp_path: Path) -> None:
    page = html(compare([fabricate(tmp_path, {"gap": (9, 9), "noah": (8, 8)})]))
    assert page.count("<img") == 1


# --- the command


def test_figures_are_written_by_the_command(noah: Callable[..., Answer], tmp_path: Path) -> None:
    fabricate(tmp_path / "runs", THREE)
    answer = noah("compare", "runs", "--csv", "--figures", "figures")
    assert (answer.status, answer.err) == (0, "")
    assert len(list(Path("figures").glob("*.png"))) == 4


def test_figures_that_cannot_be_written_are_one_line(noah: Callable[..., Answer], tmp_path: Path) -> None:
    fabricate(tmp_path / "runs", THREE)
    Path("file").write_text("mine")
    answer = noah("compare", "runs", "--csv", "--figures", "file")
    assert answer.status == 2
    assert answer.err.count("\n") == 1
    assert "file cannot be written" in answer.err
    assert Path("file").read_text() == "mine"
    with pytest.raises(ConfigError, match="cannot be written"):
        write_figures(compare([tmp_path / "runs"]), tmp_path / "file" / "inside")


def test_ranks_need_neither_torch_nor_matplotlib(tmp_path: Path) -> None:
    fabricate(tmp_path / "runs", THREE)
    code = (
        "import sys; from noah_lightning.cli import main; assert main(['compare', sys.argv[1], '--csv']) == 0; "
        "print({'torch', 'lightning', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "runs"], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("set()\n")
