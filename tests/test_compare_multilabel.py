"""Comparison of multi-label runs, on run directories with known numbers."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from noah_lightning.analysis import compare, html
from noah_lightning.analysis import csv as as_csv
from noah_lightning.analysis.report import main_table, summary
from noah_lightning.errors import ConfigError
from noah_lightning.run_dir import RunDir
from test_compare import first, make_run


def make_multilabel_run(path: Path, percent: float, **arguments: Any) -> Path:
    run = make_run(path, data__name="digits_multilabel", **arguments)
    facts = json.loads((run / "results.json").read_text())
    del facts["correct"], facts["correct_top5"]
    (run / "results.json").write_text(json.dumps(facts | {"map": percent}))
    metrics = (run / "metrics.csv").read_text()
    (run / "metrics.csv").write_text(metrics.replace("val/top1", "val/map"))
    return run


def test_multi_label_runs_are_compared_by_mean_average_precision(tmp_path: Path) -> None:
    for seed, percent in enumerate((81.0, 82.0)):
        make_multilabel_run(tmp_path / f"gap{seed}", percent, head="gap", seed=seed)
        make_multilabel_run(tmp_path / f"noah{seed}", percent + 2.5, seed=seed)
    comparison = compare([tmp_path])
    table = main_table(comparison)
    assert table.columns[:4] == ["group", "runs", "mAP %", "difference"]
    assert table.rows[1][1:6] == ["2", "84.00 ± 0.71", "+2.50", "not tested", "–"]
    (sentence,) = summary(comparison)
    assert "is +2.50 points over" in sentence
    assert "not tested: McNemar's test counts images that are right" in sentence
    rows = list(csv.DictReader(io.StringIO(as_csv(comparison))))
    assert [row["map_mean"] for row in rows] == ["81.5", "84.0"]
    assert [row["top1_mean"] + row["correct"] for row in rows] == ["", ""]
    assert "validation metric" in html(comparison)


def test_both_kinds_of_runs_in_one_table(tmp_path: Path) -> None:
    make_multilabel_run(tmp_path / "sets", 81.0)
    make_run(tmp_path / "classes", correct=first(20))
    table = main_table(compare([tmp_path]))
    assert table.columns[2:4] == ["top-1 %", "mAP %"]
    assert sorted(row[2:4] for row in table.rows) == [["50.00", "–"], ["–", "81.00"]]
    sentences = summary(compare([tmp_path]))
    assert any("mAP 81.00 % over 40 images" in sentence for sentence in sentences)


@pytest.mark.parametrize("facts", [{"map": 101.0}, {"map": -1.0}, {"images": 0, "map": 3.0}, {"correct": None}])
def test_impossible_results_are_not_results(tmp_path: Path, facts: dict[str, Any]) -> None:
    run = make_run(tmp_path / "run", results=facts)
    with pytest.raises(ConfigError, match="does not contain a finished run"):
        RunDir(run).results()
