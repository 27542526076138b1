"""Every kernel of NOAH against the definition in float64, which test_head_noah.py holds against the equations."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from packaging.version import Version
from torch import Tensor

from noah_lightning.errors import HeadSettingError
from noah_lightning.heads import NOAHHead, kernels
from noah_lightning.heads.kernels import sliced

# Settings that take every branch: groups or none, shared channels or not, tiles and slices that do not come out even.
SETTINGS = {
    "split": {"head_num": 3, "key_ratio": 0.25},
    "all-channels": {"head_num": 2, "head_split": False},
    "shared-channels": {"head_num": 2, "kv_split": False},
    "all-shared": {"head_num": 3, "head_split": False, "kv_split": False},
    "one-head": {"head_num": 1},
}
NAMES = ("logits", "features", "query.weight", "query.bias", "value.weight", "value.bias")


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # of the fused kernel; on the CPU Triton interprets it


@pytest.fixture(params=["sliced", "fused"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """A kernel and the device it is tested on."""
    if request.param == "sliced":
        monkeypatch.setattr(sliced, "_CPU_ELEMENTS", 1000)  # several slices, the last one shorter
        return "sliced", "cpu"
    fused = pytest.importorskip("noah_lightning.heads.kernels.fused")
    if (
        DEVICE == "cpu"
        and Version(version("triton")) < Version("3.7")
        and Version(version("numpy")) >= Version("2.4")
    ):
        pytest.skip("the interpreter of this Triton cannot count with this NumPy (triton-lang/triton issue 9171)")
    monkeypatch.setattr(fused, "_SLICE", 2000)
    monkeypatch.setattr(kernels, "_obstacle", lambda features: "")
    return "fused", DEVICE


def make_head(kernel: str, classes: int = 37, width: int = 24, **options: object) -> NOAHHead:
    torch.manual_seed(0)
    head = NOAHHead(width, classes, kernel=kernel, **options)
    for bias in (head.query.bias, head.value.bias):
        torch.nn.init.normal_(bias)  # zero at the start, so a forgotten bias would pass
    return head


def logits_and_gradients(head: NOAHHead, features: Tensor) -> dict[str, Tensor]:
    """By name; the loss is uneven in the logits, so that each has a gradient of its own."""
    features = features.detach().requires_grad_()
    logits = head(features)
    grads = torch.autograd.grad(logits.double().sin().sum(), [features, *head.parameters()])
    return dict(zip(NAMES, (logits, *grads), strict=True))


def relative_errors(head: NOAHHead, features: Tensor) -> dict[str, float]:
    """Of logits and gradients, by norms, to the definition in float64 with the same numbers."""
    truth = NOAHHead(
        features.shape[1], head.num_classes, head.head_num, **geometry(head), kernel="definition"
    ).double()
    truth.load_state_dict(head.state_dict())
    expected = logits_and_gradients(truth, features.cpu().double())
    found = logits_and_gradients(head, features)
    assert all(found[name].dtype == features.dtype for name in NAMES)
    assert not found["query.bias"].any()  # exactly zero, where the definition finds rounding errors
    return {
        name: ((found[name].cpu().double() - expected[name]).norm() / expected[name].norm()).item()
        for name in NAMES
        if name != "query.bias"
    }


def geometry(head: NOAHHead) -> dict[str, object]:
    width = head.key_channels + head.value_channels if head.kv_split else head.key_channels
    return {
        "key_ratio": (head.key_channels + 0.5) / width if head.kv_split else 0.5,
        "head_split": head.query.groups > 1 or head.head_num == 1,
        "kv_split": head.kv_split,
    }


@pytest.mark.parametrize("layout", ["BCHW", "channels_last", "tokens"])
@pytest.mark.parametrize("options", SETTINGS.values(), ids=SETTINGS)
def test_float32(kernel: tuple[str, str], options: dict, layout: str) -> None:
    head = make_head(kernel[0], **options).to(kernel[1])
    features = torch.randn(5, 24, 3, 3, device=kernel[1])
    if layout == "channels_last":
        features = features.to(memory_format=torch.channels_last)
    if layout == "tokens":
        features = torch.randn(5, 9, 24, device=kernel[1]).transpose(1, 2)
    errors = relative_errors(head, features)
    assert max(errors.values()) < 1e-5, errors


# Triton's interpreter has no bfloat16.
@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
def test_half_precision(kernel: tuple[str, str], dtype: torch.dtype, bound: float) -> None:
    if kernel == ("fused", "cpu") and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter multiplies no bfloat16 matrices")
    head = make_head(kernel[0], classes=150, width=96).to(kernel[1], dtype)
    errors = relative_errors(head, torch.randn(5, 96, 49, device=kernel[1], dtype=dtype))
    assert max(errors.values()) < bound, errors


def test_autocast(kernel: tuple[str, str]) -> None:
    """Half features and whole weights: float32 logits, each gradient in the precision of its tensor."""
    name, device = kernel
    dtype = torch.bfloat16 if kernel != ("fused", "cpu") else torch.float16
    head = make_head(name, width=96).to(device)
    features = torch.randn(5, 96, 49, device=device, requires_grad=True)
    with torch.autocast(device, dtype):
        logits = head(features)
        head.kernel = "definition"
        expected = head(features)
    assert logits.dtype == torch.float32
    grads = torch.autograd.grad(logits.sin().sum(), [features, *head.parameters()])
    assert all(grad.dtype == torch.float32 for grad in grads)
    assert (logits - expected).norm() / expected.norm() < 2e-2


@given(
    batch=st.integers(1, 6),
    positions=st.integers(2, 40),
    classes=st.integers(1, 50),
    heads=st.integers(1, 3),
    widths=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    elements=st.integers(1, 4000),
)
@hypothesis_settings(max_examples=40, deadline=None)
def test_any_shape_in_slices(
    batch: int, positions: int, classes: int, heads: int, widths: tuple[int, int], elements: int
) -> None:
    key, value = (heads * width for width in widths)
    head = make_head("sliced", classes, key + value, head_num=heads, key_ratio=(key + 0.5) / (key + value))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sliced, "_CPU_ELEMENTS", elements)
        errors = relative_errors(head.double(), torch.randn(batch, key + value, positions, dtype=torch.float64))
    assert max(errors.values()) < 1e-12, errors


@pytest.mark.parametrize(("positions", "classes"), [(1, 5), (17, 130), (130, 3)])
def test_tiles_that_do_not_come_out_even(kernel: tuple[str, str], positions: int, classes: int) -> None:
    head = make_head(kernel[0], classes).to(kernel[1])
    errors = relative_errors(head, torch.randn(2, 24, positions, device=kernel[1]))
    del errors["query.weight"]  # zero with one position
    assert max(errors.values()) < 1e-5, errors


def test_large_scores_do_not_overflow(kernel: tuple[str, str]) -> None:
    head = make_head(kernel[0]).to(kernel[1])
    features = 1000 * torch.randn(2, 24, 9, device=kernel[1])
    found = logits_and_gradients(head, features)
    assert all(tensor.isfinite().all() for tensor in found.values())
    assert relative_errors(head, features)["logits"] < 1e-5


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradients_by_finite_differences(dropout: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64; the seed is set each time, so a mask that changed on the way back would be seen."""
    monkeypatch.setattr(sliced, "_CPU_ELEMENTS", 100)
    head = make_head("sliced", classes=4, width=8, head_num=2, dropout=dropout).double()

    def function(features: Tensor, *parameters: Tensor) -> Tensor:
        torch.manual_seed(1)
        return torch.func.functional_call(head, dict(zip(NAMES[2:], parameters, strict=True)), features)

    features = torch.randn(3, 8, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, (features, *head.parameters()))


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


def test_auto_is_sliced_without_a_gpu() -> None:
    features = torch.randn(2, 24, 9)
    torch.testing.assert_close(make_head("auto")(features), make_head("sliced")(features), rtol=0, atol=0)
    with pytest.raises(HeadSettingError, match="kernel=fused needs a GPU; kernel=auto"):
        make_head("fused")(features)


def test_unknown_kernel_is_refused() -> None:
    with pytest.raises(HeadSettingError, match="kernel='fast' must be one of auto, fused, sliced, definition"):
        NOAHHead(8, 3, kernel="fast")


COMPILE = """
import sys, torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from noah_lightning.heads import NOAHHead
from noah_lightning.heads import kernels
from noah_lightning.heads.kernels import fused

TYPES = {"keys_ptr": "*i64", "logits_ptr": "*fp32", "grad_ptr": "*fp32", "scale": "fp32", "drop_below": "u32"}
head = NOAHHead(512, 1000).bfloat16()
weights = head.query.weight, head.value.weight, head.value.bias
kernel = fused._attention_kernel
names = kernel.arg_names
forward, backward = {"logits_ptr"}, {name for name in names if name.startswith("grad_")}
for positions, capability in (49, 90), (196, 80):
    features = torch.empty(2, 512, positions, dtype=torch.bfloat16)
    settings = kernels._kernel(features, weights, 4, 1000, 0.1, torch.tensor(0), fused=True).settings
    for absent in backward, forward:
        fixed = {name: settings.get(name) for name in names if name.isupper() or name in absent}
        types = {name: TYPES.get(name, "*bf16" if name.endswith("_ptr") else "i32") for name in names}
        types |= dict.fromkeys(fixed, "constexpr")
        constants = {(names.index(name),): value for name, value in fixed.items()}
        target, options = GPUTarget("cuda", capability, 32), {"num_warps": settings["num_warps"]}
        compiled = triton.compile(ASTSource(kernel, types, constants), target=target, options=options)
        print(len(compiled.asm["cubin"]) > 0, compiled.metadata.shared)
"""


def test_fused_kernel_compiles_for_gpus(tmp_path: Path) -> None:
    """Down to machine code, which takes no GPU, and within the shared memory that every such GPU has."""
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    run = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    lines = [line.split() for line in run.stdout.splitlines()]
    assert len(lines) == 4
    assert all(built == "True" and int(shared) <= 99 * 1024 for built, shared in lines)
