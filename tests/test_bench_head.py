"""``python -m benchmarks.head``: that it measures what it says; how fast things are is no matter for a test."""

import json

import pytest
import torch

from benchmarks import head as bench
from benchmarks.memory import peak_memory
from benchmarks.timing import alternate, ratio, spread
from conftest import call_benchmark
from noah_lightning.heads import NOAHHead


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "SHAPES", {"small": (32, 9, 4, 0.5)})
    monkeypatch.setattr(bench, "CLASSES", 50)
    monkeypatch.setattr(bench, "_batch", lambda device: 8)


def test_table_and_figures() -> None:
    answer = call_benchmark("head", "--rounds", "2")
    assert answer.status == 0, answer.err
    for word in ("definition / ours", "small", "train, dropout 0.1", "geometric mean"):
        assert word in answer.out
    report = json.loads(call_benchmark("head", "--rounds", "2", "--json").out)
    assert report["machine"]["threads"] == torch.get_num_threads()
    assert [figure["mode"] for figure in report["figures"]] == ["train", "train", "eval"]
    for figure in report["figures"]:
        assert figure["seconds"].keys() == {"definition", "ours", "gap"}
        assert min(figure["seconds"].values()) > 0
        assert figure["definition_over_ours"]["low"] <= figure["definition_over_ours"]["high"]


def test_both_heads_do_the_same_work() -> None:
    """The contestants get the same weights and give the same gradients."""
    work = bench._heads("small", 0.0, training=True, device=torch.device("cpu"))
    torch.manual_seed(0)
    for ours, definition in zip(work["ours"](), work["definition"](), strict=True):
        assert ours.shape == definition.shape


def test_memory() -> None:
    (figure,) = json.loads(call_benchmark("head", "--profile", "--json").out)["figures"]
    assert figure["bytes"]["definition"] > 4 * 8 * 4 * 50 * 9 * 3  # at least three tensors of B N K L floats
    assert figure["ours_over_definition"] == figure["bytes"]["ours"] / figure["bytes"]["definition"]


def test_peak_memory_counts_what_is_there_at_a_time() -> None:
    def work() -> torch.Tensor:
        first = torch.ones(1000, 100)  # 400,000 bytes
        second = first + first
        del first
        return second * second

    assert peak_memory(work, torch.device("cpu")) == 800_000


@pytest.mark.slow
def test_21841_classes_train_within_2_gib() -> None:
    head = NOAHHead(512, 21_841, head_num=4)
    features = torch.randn(64, 512, 49, requires_grad=True)

    def step() -> object:
        return torch.autograd.grad(head(features).logsumexp(1).sum(), [features, *head.parameters()])

    assert peak_memory(step, torch.device("cpu")) < 2 * 2**30


def test_models(monkeypatch: pytest.MonkeyPatch) -> None:
    (figure,) = json.loads(call_benchmark("head", "--models", "mobilenetv2_035", "--rounds", "1", "--json").out)[
        "figures"
    ]
    assert figure["row"] == "mobilenetv2_035"
    assert min(figure["seconds"].values()) > 0
    answer = call_benchmark("head", "--models", "resnet")
    assert answer.status == 2
    assert "did you mean resnet" in answer.err


def test_work_is_done_in_turns() -> None:
    order: list[str] = []
    seconds = alternate({name: lambda name=name: order.append(name) for name in "ab"}, rounds=3)
    assert order == ["a", "b", "a", "b", "b", "a", "a", "b"]  # a round ahead, then each time another one first
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3}


def test_ratio_is_of_each_round() -> None:
    """A machine that slows down by half of the time does not blur the ratio."""
    assert ratio({"slow": [2.0, 6.0, 4.0], "fast": [1.0, 3.0, 2.0]}, "slow", "fast").median == 2
    assert spread([1.0, 2.0, 3.0, 4.0, 5.0]).low == 2
