"""NOAHHead within torch: its operator, compilation, and what is kept for the backward pass."""

import pytest
import torch
from torch import Tensor

from noah_kernels import logits_and_gradients, make_head
from noah_lightning.heads import kernels


def test_nothing_but_features_and_weights_is_kept() -> None:
    head = make_head("sliced", classes=500)
    features = torch.randn(4, 24, 9, requires_grad=True)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor
    ):
        head(features)
    own = {tensor.data_ptr() for tensor in (features, *head.parameters())}
    assert all(tensor.data_ptr() in own or tensor.numel() == 1 for tensor in kept)


def test_second_derivative_is_refused() -> None:
    head = make_head("sliced")
    features = torch.randn(2, 24, 9, requires_grad=True)
    (grad,) = torch.autograd.grad(head(features).sin().sum(), features, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative with kernel='definition' only"):
        grad.sum().backward()


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_it_is_a_proper_operator(dropout: float) -> None:
    """Shapes and strides it announces, functional, differentiable: torch's own checks of a custom operator."""
    head = make_head("sliced", head_num=2)
    features = torch.randn(2, 24, 9, requires_grad=True)
    arguments = (features, *head.parameters(), 2, 37, dropout, torch.tensor(3), False)
    torch.library.opcheck(kernels.logits, arguments)


@pytest.mark.parametrize(
    "backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]
)  # the second one calls a C++ compiler
def test_compiled_whole(backend: str) -> None:
    head = make_head("auto", dropout=0.2)
    features = torch.randn(3, 24, 9)
    torch.manual_seed(2)
    expected = logits_and_gradients(head, features)
    head.compile(fullgraph=True, backend=backend)
    torch.manual_seed(2)
    found = logits_and_gradients(head, features)
    if backend == "inductor":  # draws its numbers by itself
        assert found["logits"].isfinite().all()
        head.eval()
        expected, found = head.forward(features), head(features)
        torch.testing.assert_close(found, expected)
    else:
        torch.testing.assert_close(found, expected)
