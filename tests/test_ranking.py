"""Ranks, tests of many heads, and their figures: published examples, SciPy, and fabricated run directories."""

import csv as csv_module
import io
import itertools
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import friedmanchisquare, rankdata

from noah_lightning.analysis import Comparison, compare, csv, html, latex, markdown
from noah_lightning.analysis.ranking import Ranking, friedman, nemenyi
from noah_lightning.analysis.statistics import holm
from noah_lightning.analysis.summary import remarks, summary
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


# --- the command


def test_ranks_need_neither_torch_nor_matplotlib(tmp_path: Path) -> None:
    fabricate(tmp_path / "runs", THREE)
    code = (
        "import sys; from noah_lightning.cli import main; assert main(['compare', sys.argv[1], '--csv']) == 0; "
        "print({'torch', 'lightning', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "runs"], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("set()\n")
