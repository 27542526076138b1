"""NOAHHead against the recorded official cases and against the equations written out with loops."""

import json
import math
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy

from noah_lightning.heads import NOAHHead, make_head
from noah_lightning.heads.noah import possible_head_nums

CASES = json.loads((Path(__file__).parent / "data" / "noah_head_cases.json").read_text())


def official_case(case: dict) -> tuple[NOAHHead, Tensor]:
    """The head with the recorded weights, and the recorded input, in float64."""
    names = ("in_channels", "num_classes", "head_num", "key_ratio", "head_split", "kv_split")
    head = NOAHHead(**{name: case[name] for name in names}).double()
    weights = {
        key: torch.tensor(case["weights"][key], dtype=torch.float64).reshape(case["shapes"][key])
        for key in case["weights"]
    }
    head.load_state_dict(weights)  # strict: the official names are ours
    x = torch.tensor(case["x"], dtype=torch.float64)
    x = x.reshape(-1, case["in_channels"], case["height"], case["width"]).requires_grad_()
    return head, x


@pytest.mark.parametrize("flat", [False, True], ids=["BCHW", "BCL"])
@pytest.mark.parametrize("case", CASES)
def test_official_cases(case: dict, flat: bool) -> None:
    head, x = official_case(case)
    logits = head(x.flatten(2) if flat else x)
    expected = torch.tensor(case["logits"], dtype=torch.float64).reshape(logits.shape)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-7)

    logits.backward(torch.tensor(case["grad_logits"], dtype=torch.float64).reshape(logits.shape))
    gradients = {"x": x.grad, **{name: p.grad for name, p in head.named_parameters()}}
    assert gradients.keys() == case["grads"].keys()
    for name, recorded in case["grads"].items():
        expected = torch.tensor(recorded, dtype=torch.float64).reshape(gradients[name].shape)
        torch.testing.assert_close(gradients[name], expected, rtol=0, atol=1e-7, msg=name)


def by_the_equations(head: NOAHHead, x: np.ndarray, ratio: float, head_split: bool, kv_split: bool) -> tuple:
    """logits (B, K), attention (B, N, K, L) of one head from x (B, C, L), one scalar at a time."""
    wq, bq, wv, bv = (p.detach().numpy() for p in head.parameters())
    batch, width, positions = x.shape
    heads, classes = head.head_num, head.num_classes
    first_value = int(width * ratio) if kv_split else 0
    key_part = x[:, :first_value] if kv_split else x
    value_part = x[:, first_value:]

    def project(part, weight, bias, b, n, k, position):
        span = part.shape[1] // heads if head_split else part.shape[1]
        start = n * span if head_split else 0
        return bias[n * classes + k] + sum(
            weight[n * classes + k, c, 0, 0] * part[b, start + c, position] for c in range(span)
        )

    logits = np.zeros((batch, classes))
    attention = np.zeros((batch, heads, classes, positions))
    for b in range(batch):
        for n in range(heads):
            for k in range(classes):
                scores = [project(key_part, wq, bq, b, n, k, position) for position in range(positions)]
                weights = [np.exp(s - max(scores)) for s in scores]
                for position in range(positions):
                    attention[b, n, k, position] = weights[position] / sum(weights)
                    value = project(value_part, wv, bv, b, n, k, position)
                    logits[b, k] += attention[b, n, k, position] * value
    return logits, attention


@st.composite
def head_settings(draw):
    heads = draw(st.integers(1, 4))
    kv_split = draw(st.booleans())
    key, value = heads * draw(st.integers(1, 3)), heads * draw(st.integers(1, 3))
    width = key + value
    return {
        "in_channels": width,
        "num_classes": draw(st.integers(1, 4)),
        "head_num": heads,
        "key_ratio": (key + 0.5) / width,  # int(C r) truncates: rounding here would be seen
        "head_split": draw(st.booleans()) if kv_split or width % heads == 0 else False,
        "kv_split": kv_split,
    }


@given(options=head_settings(), positions=st.integers(1, 6), seed=st.integers(0, 2**16))
@settings(max_examples=60, deadline=None)
def test_equals_the_equations(options: dict, positions: int, seed: int) -> None:
    torch.manual_seed(seed)
    head = NOAHHead(**options).double()
    for bias in (head.query.bias, head.value.bias):
        torch.nn.init.normal_(bias)  # zero at the start, so a forgotten bias would pass
    x = torch.randn(2, options["in_channels"], positions, dtype=torch.float64)
    logits, attention = by_the_equations(
        head, x.numpy(), options["key_ratio"], options["head_split"], options["kv_split"]
    )
    np.testing.assert_allclose(head(x).detach().numpy(), logits, rtol=1e-11, atol=1e-11)
    explanation = head.explain(x)
    np.testing.assert_allclose(explanation.attention.detach().numpy(), attention, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(explanation.contribution.sum(2), explanation.logits, rtol=0, atol=0)
    torch.testing.assert_close(explanation.logits, head(x), rtol=1e-11, atol=1e-11)


def test_contribution_says_which_position_adds_what() -> None:
    """Only position 2 carries a value, so it alone may contribute, by attention times value."""
    torch.manual_seed(0)
    head = NOAHHead(4, 3, head_num=1, key_ratio=0.5).double()
    x = torch.randn(1, 4, 5, dtype=torch.float64)
    x[:, 2:] = 0
    x[:, 2:, 2] = torch.tensor([1.0, -2.0])
    explanation = head.explain(x)
    value = head.value.weight[:, :, 0, 0] @ torch.tensor([1.0, -2.0], dtype=torch.float64)
    expected = torch.zeros(1, 3, 5, dtype=torch.float64)
    expected[0, :, 2] = explanation.attention[0, 0, :, 2] * value
    torch.testing.assert_close(explanation.contribution, expected)


def test_dropout_drops_values_only_while_training() -> None:
    """With one position the attention is 1, so a logit of one head is its value: dropped to 0 or scaled up."""
    torch.manual_seed(0)
    head = NOAHHead(2, 2000, head_num=1, dropout=0.25).double()
    x = torch.randn(1, 2, 1, dtype=torch.float64)
    kept = head.eval()(x)
    dropped = head.train()(x)
    gone = dropped == 0
    assert abs(gone.double().mean().item() - 0.25) < 0.04  # 4 standard deviations of a mean over 2000
    torch.testing.assert_close(dropped[~gone], kept[~gone] / 0.75)
    torch.testing.assert_close(head.eval()(x), kept)


def test_dropout_leaves_the_attention_whole() -> None:
    head = NOAHHead(8, 5, dropout=0.5).train()
    attention = head.explain(torch.randn(2, 8, 6)).attention
    torch.testing.assert_close(attention.sum(3), torch.ones(2, 4, 5))


@pytest.mark.parametrize(
    ("init", "query_std", "value_std"),
    [
        ("official", (2 / 4000) ** 0.5, (2 / 4000) ** 0.5),
        ("lecun", 32**-0.5, 96**-0.5),
        ("small", 0.02, 0.02),
    ],
)
def test_starting_weights(init: str, query_std: float, value_std: float) -> None:
    torch.manual_seed(0)
    head = NOAHHead(512, 1000, head_num=4, key_ratio=0.25, init=init)
    for conv, std in ((head.query, query_std), (head.value, value_std)):
        assert conv.weight.std().item() == pytest.approx(std, rel=0.01)
        assert abs(conv.weight.mean().item()) < 0.02 * std
        assert torch.equal(conv.bias, torch.zeros_like(conv.bias))


@pytest.mark.parametrize(
    "options", [{}, {"head_num": 1, "key_ratio": 0.25}, {"head_split": False}, {"kv_split": False}]
)
@pytest.mark.parametrize("width", [32, 1280])
def test_average_starts_as_average_pooling(width: int, options: dict) -> None:
    """The attention is uniform, and a logit linear in the average, with a variance that no setting changes.

    The variance is over 20,000 classes, each drawn independently: its standard error is 1 %.
    """
    torch.manual_seed(0)
    head = NOAHHead(width, 20_000, init="average", **options).double()
    x = torch.randn(1, width, 3, dtype=torch.float64)
    explanation = head.explain(x)
    assert torch.equal(explanation.attention, torch.full_like(explanation.attention, 1 / 3))
    pooled = x.mean(2, keepdim=True)[:, -head.value_channels :, :, None]
    expected = head.value(pooled).unflatten(1, (head.head_num, 20_000)).sum((1, 3, 4))
    torch.testing.assert_close(head(x), expected, rtol=1e-10, atol=1e-12)
    assert explanation.logits.var().item() == pytest.approx(0.01 * pooled.square().mean().item(), rel=0.05)


@pytest.mark.parametrize("num_classes", [2, 10, 1000])
def test_loss_of_average_starts_near_the_log_of_the_classes(num_classes: int) -> None:
    """``official`` starts 0.5 or more above it with 2 or 10 classes."""
    torch.manual_seed(0)
    features, labels = torch.randn(256, 512, 49).relu(), torch.randint(0, num_classes, (256,))
    with torch.no_grad():
        loss = cross_entropy(NOAHHead(512, num_classes, init="average")(features), labels)
    assert loss.item() == pytest.approx(math.log(num_classes), abs=0.02)


@pytest.mark.parametrize("head_split", [True, False])
def test_average_teaches_every_query_from_the_first_step(head_split: bool) -> None:
    """Blocks that read the same channels start with the same attention, yet learn different ones."""
    torch.manual_seed(0)
    head = NOAHHead(16, 5, init="average", head_split=head_split)
    cross_entropy(head(torch.randn(8, 16, 6)), torch.arange(8) % 5).backward()
    gradient = head.query.weight.grad
    assert gradient is not None
    blocks = gradient.flatten(1).unflatten(0, (4, 5))  # (N, K, channels)
    assert (blocks.abs().amax(2) > 0).all()
    assert all((a != b).any() for a, b in combinations(blocks, 2))


def test_parameter_count_of_a_published_row() -> None:
    """ResNet50: 4 heads read 256 and 1792 channels between them, for 1000 classes, with biases."""
    head = NOAHHead(2048, 1000, head_num=4, key_ratio=1 / 8)
    assert sum(p.numel() for p in head.parameters()) == 1000 * (256 + 1792) + 2 * 4000


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"head_num": 3},
            ["head_num=3", "256 key", "256 value", "512", "head_num=1, 2, 4, 8", "head_split=false"],
        ),
        (
            {"head_num": 64, "key_ratio": 0.0625},
            ["head_num=64", "32 key", "480 value", "key_ratio=0.125, 0.25, 0.5"],
        ),
        ({"head_num": 3, "kv_split": False}, ["head_num=3", "512 key", "head_num=1, 2, 4, 8"]),
        ({"head_num": 0}, ["head_num=0", "at least 1"]),
        ({"head_num": 2.5}, ["head_num=2.5", "an integer of at least 1"]),
        ({"key_ratio": 0}, ["key_ratio=0 ", "above 0 and below 1"]),
        ({"key_ratio": 1.0}, ["key_ratio=1.0", "above 0 and below 1"]),
        ({"key_ratio": "half"}, ["key_ratio='half'"]),
        ({"key_ratio": 0.001}, ["key_ratio=0.001", "0 key", "0.00195"]),
        ({"dropout": 1}, ["dropout=1"]),
        ({"init": "zero"}, ["init='zero'", "one of official, lecun, small"]),
        ({"num_classes": 0}, ["num_classes=0"]),
    ],
)
def test_impossible_settings_say_what_works(options: dict, says: list[str]) -> None:
    with pytest.raises(ValueError, match="NOAH") as error:
        NOAHHead(**{"in_channels": 512, "num_classes": 10, **options})
    assert "\n" not in str(error.value)
    for part in says:
        assert part in str(error.value)


@given(width=st.integers(2, 96), ratio=st.floats(0.05, 0.95), kv_split=st.booleans())
@settings(max_examples=40, deadline=None)
def test_proposed_head_numbers_work_and_are_all(width: int, ratio: float, kv_split: bool) -> None:
    def works(n: int) -> bool:
        try:
            NOAHHead(width, 2, n, ratio, kv_split=kv_split)
        except ValueError:
            return False
        return True

    if int(width * ratio) == 0:
        return
    assert possible_head_nums(width, ratio, kv_split) == [n for n in range(1, width + 1) if works(n)]


def test_without_head_split_any_number_works() -> None:
    assert NOAHHead(10, 3, head_num=7, key_ratio=0.5, head_split=False)(torch.randn(2, 10, 4)).shape == (2, 3)


@pytest.mark.parametrize("shape", [(2, 8), (2, 9, 4), (2, 4, 8)])
def test_wrong_input_is_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"needs \(B, 8, L\) or \(B, 8, H, W\)"):
        NOAHHead(8, 3)(torch.randn(shape))


def test_make_head_is_strict() -> None:
    with pytest.raises(ValueError, match="no head is called 'noha'; did you mean noah"):
        make_head("noha", 8, 3)
    with pytest.raises(ValueError, match="no setting 'head_nun'; did you mean head_num"):
        make_head("noah", 8, 3, head_nun=2)
