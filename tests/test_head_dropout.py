"""Dropout of NOAH's kernels: what is dropped, how often, and the gradients of what is kept."""

import pytest
import torch
from torch import Tensor

from noah_kernels import NAMES, logits_and_gradients, make_head, prepare
from noah_lightning.heads import NOAHHead
from noah_lightning.heads.kernels import sliced
from noah_lightning.heads.kernels.sliced import Weights


@pytest.fixture(params=["sliced", "fused"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """A kernel and the device it is tested on."""
    return prepare(request.param, monkeypatch)


def kept_share(kernel: str, dropout: float) -> float:
    """Of the values: as set, and near 1 what is left of it by 16 random bits, or 32 of the fused kernel."""
    numbers = 2 ** (16 if kernel == "sliced" else 32)
    return 1 - dropout if dropout < 0.9 else max(1, numbers - round(dropout * numbers)) / numbers


def dropped_values(head: NOAHHead, batch: int, positions: int, seed: int, device: str) -> Tensor:
    """1 where a value is kept, 0 where not, (B, N, K, L), read off the logits of a head that shows them.

    Attention is even, and of all values only those of one head are not zero: 2^l at position l, so that the bits of
    a logit show which ones were kept.
    """
    shown = NOAHHead(2 * head.head_num, head.num_classes, head.head_num, dropout=head.dropout.p, kernel=head.kernel)
    for parameter in shown.parameters():
        torch.nn.init.zeros_(parameter)
    torch.nn.init.ones_(shown.value.weight)
    shown.to(device)
    kept = torch.empty(batch, head.head_num, head.num_classes, positions)
    for n in range(head.head_num):
        features = torch.zeros(batch, 2 * head.head_num, positions, device=device)
        features[:, head.head_num + n] = 2.0 ** torch.arange(positions)
        torch.manual_seed(seed)
        with torch.no_grad():
            total = shown(features).cpu() * positions * kept_share(head.kernel, head.dropout.p)
        torch.testing.assert_close(total, total.round(), rtol=0, atol=1e-4)
        bits = total.round().int().unsqueeze(2)
        assert not (bits >> positions).any()
        kept[:, n] = (bits >> torch.arange(positions)) & 1
    return kept


def errors_with_dropout(head: NOAHHead, features: Tensor, device: str) -> dict[str, float]:
    """Of logits and gradients to the definition, into which the dropped values are put, found out beforehand."""
    batch, _, positions = features.shape
    kept = dropped_values(head, batch, positions, 7, device)
    assert kept.any()
    torch.manual_seed(7)
    found = logits_and_gradients(head, features)

    truth = make_head("definition", head.num_classes, head_num=2).double()
    x = features.cpu().double().requires_grad_()
    attention_map, values = truth._attend(x)
    logits = (attention_map * values * kept / kept_share(head.kernel, head.dropout.p)).sum(dim=(1, 3))
    grads = torch.autograd.grad(logits.sin().sum(), [x, *truth.parameters()])
    expected = dict(zip(NAMES, (logits, *grads), strict=True))
    return {
        part: ((found[part].cpu().double() - expected[part]).norm() / expected[part].norm()).item()
        for part in set(NAMES) - {"query.bias"}
    }


def test_dropout_forward_and_backward(kernel: tuple[str, str]) -> None:
    name, device = kernel
    head = make_head(name, head_num=2, dropout=0.4).to(device)
    errors = errors_with_dropout(head, torch.randn(5, 24, 9, device=device), device)
    assert max(errors.values()) < 1e-5, errors


def test_gradients_are_exact_where_nearly_everything_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64: the logits are about 65,536 times as large, of which the loss takes the sine."""
    monkeypatch.setattr(sliced, "_CPU_ELEMENTS", 100_000)
    head = make_head("sliced", 2000, head_num=2, dropout=0.99999).double()
    errors = errors_with_dropout(head, torch.randn(20, 24, 9, dtype=torch.float64), "cpu")
    assert max(errors.values()) < 1e-9, errors


def test_dropout_drops_the_right_share_independently(kernel: tuple[str, str]) -> None:
    name, device = kernel
    head = NOAHHead(4, 250, head_num=2, dropout=0.3, kernel=name)
    kept = dropped_values(head, 4, 5, 3, device)  # 10,000 draws
    assert abs(kept.mean().item() - 0.7) < 4 * (0.21 / kept.numel()) ** 0.5
    for axis in range(4):  # neighbors along any axis are independent; each pair counts once
        pairs = kept.shape[axis] - 1
        one, other = kept.narrow(axis, 0, pairs), kept.narrow(axis, 1, pairs)
        assert abs(((one - 0.7) * (other - 0.7)).mean().item()) < 4 * 0.21 / one.numel() ** 0.5
    again = dropped_values(head, 4, 5, 4, device)
    assert abs(((kept - 0.7) * (again - 0.7)).mean().item()) < 4 * 0.21 / kept.numel() ** 0.5


@pytest.mark.parametrize(
    ("name", "dropout", "batch"),
    [("sliced", 0.99999, 512), ("sliced", 1 - 1e-9, 512), ("sliced", 1e-9, 1), ("fused", 0.999, 8)],
)
def test_dropout_keeps_the_mean_of_the_logits(
    name: str, dropout: float, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All values are 1 and the attention is even, so a logit is the number of heads on average, at any rate."""
    name, device = prepare(name, monkeypatch)
    monkeypatch.setattr(sliced, "_CPU_ELEMENTS", 2**19)
    head = NOAHHead(8, 250, head_num=4, dropout=dropout, kernel=name).to(device)
    for parameter in head.parameters():
        torch.nn.init.zeros_(parameter)
    torch.nn.init.ones_(head.value.bias)
    torch.manual_seed(0)
    logits = head(torch.randn(batch, 8, 49, device=device))
    share = kept_share(name, dropout)
    deviation = 4 * ((1 - share) / share / (logits.numel() * 4 * 49)) ** 0.5  # of their mean
    assert abs(logits.mean().item() - 4) < 4 * deviation + 1e-6


@pytest.mark.parametrize("dropout", [0.1, 0.5, 0.9, 0.95, 0.99, 0.999, 0.9999, 0.99999, 0.9999924, 1 - 1e-9])
def test_the_scale_is_that_of_the_kept_share(dropout: float) -> None:
    """Which is read off the comparison with each of the numbers of 16 bits."""
    weights = Weights(torch.zeros(1, 4, 1), torch.zeros(1, 4, 1), torch.zeros(1, 4, 1))
    kernel = sliced.SlicedKernel(torch.zeros(1, 2, 1), weights, 4, dropout, seed=0)
    kernel.draws = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.int64)
    kernel.draws.random_ = lambda *args, **kwargs: kernel.draws
    kept = kernel.kept(torch.empty(2**16)).mean(dtype=torch.float64).item()
    assert kernel.kept_share == pytest.approx(kept, rel=1e-4)
    assert kept == pytest.approx(1 - dropout, abs=2**-16)


def test_dropout_of_nearly_everything_is_finite(kernel: tuple[str, str]) -> None:
    name, device = kernel
    head = make_head(name, dropout=1 - 2**-53).to(device)
    found = logits_and_gradients(head, torch.randn(2, 24, 9, device=device))
    assert not any(tensor.any() for tensor in found.values())  # none of 3,000 values is kept


def test_no_dropout_in_evaluation(kernel: tuple[str, str]) -> None:
    head = make_head(kernel[0], dropout=0.5).to(kernel[1]).eval()
    features = torch.randn(2, 24, 9, device=kernel[1])
    before = torch.get_rng_state()
    torch.testing.assert_close(head(features), head(features), rtol=0, atol=0)
    assert torch.equal(before, torch.get_rng_state())  # no draw: evaluation does not change training
    head.kernel = "definition"
    expected = head(features)
    head.kernel = kernel[0]
    torch.testing.assert_close(head(features), expected, rtol=1e-5, atol=1e-5)
