"""``python -m benchmarks.lab``: what its report holds."""

import json

import pytest

from benchmarks import lab
from conftest import call_benchmark

TINY = ("data.train_images=64", "data.val_images=20", "data.image_size=32", "recipe.batch_size=32")


@pytest.mark.slow
def test_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab, "SETTINGS", ("head=noah", "seed=0,1"))
    monkeypatch.setattr(lab, "JOBS", 2)
    answer = call_benchmark("lab", *TINY, "--json")
    assert answer.status == 0, answer.err
    report = json.loads(answer.out[answer.out.index("{\n") :])
    demos, heads = sum(each["seconds"] for each in report["figures"][:2]), report["figures"][2]["seconds"]
    assert [each["what"] for each in report["figures"]] == ["demo, head=gap", "demo, head=noah", "head_lab, 2 heads"]
    assert report["conclusions"][0].startswith(
        f"2 heads take {heads / demos:.2f} of the time of the two demos; top-1"
    )


def test_mistakes_are_one_line() -> None:
    answer = call_benchmark("lab", "data.train_images=none")
    assert answer.status == 1
    assert "data.train_images" in answer.err
    assert "benchmark: noah train" in answer.err
    assert "Traceback" not in answer.err
