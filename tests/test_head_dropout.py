"""Dropout of NOAH's kernels: what is dropped, how often, and the gradients of what is kept."""

import pytest
import torch
from torch import Tensor

from noah_kernels import NAMES, logits_and_gradients, make_head, prepare
from noah_lightning.heads import NOAHHead


@pytest.fixture(params=["sliced", "fused"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """A kernel and the device it is tested on."""
    return prepare(request.param, monkeypatch)


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
            total = shown(features).cpu() * positions * (1 - head.dropout.p)
        torch.testing.assert_close(total, total.round(), rtol=0, atol=1e-4)
        bits = total.round().int().unsqueeze(2)
        assert not (bits >> positions).any()
        kept[:, n] = (bits >> torch.arange(positions)) & 1
    return kept


def test_dropout_forward_and_backward(kernel: tuple[str, str]) -> None:
    """The dropped values are found out beforehand, and put into the definition: all must agree."""
    name, device = kernel
    head = make_head(name, head_num=2, dropout=0.4).to(device)
    features = torch.randn(5, 24, 9, device=device)
    kept = dropped_values(head, 5, 9, 7, device)
    torch.manual_seed(7)
    found = logits_and_gradients(head, features)

    truth = make_head("definition", head_num=2).double()
    x = features.cpu().double().requires_grad_()
    attention_map, values = truth._attend(x)
    logits = (attention_map * values * kept / 0.6).sum(dim=(1, 3))
    grads = torch.autograd.grad(logits.sin().sum(), [x, *truth.parameters()])
    expected = dict(zip(NAMES, (logits, *grads), strict=True))
    for part in set(NAMES) - {"query.bias"}:
        error = (found[part].cpu().double() - expected[part]).norm() / expected[part].norm()
        assert error < 1e-5, part


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
