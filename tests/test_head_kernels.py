"""Every kernel of NOAH against the definition in float64, which test_head_noah.py holds against the equations."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor

from noah_kernels import NAMES, SETTINGS, logits_and_gradients, make_head, prepare, relative_errors
from noah_lightning.errors import HeadSettingError
from noah_lightning.heads import NOAHHead
from noah_lightning.heads.kernels import sliced


@pytest.fixture(params=["sliced", "fused"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """A kernel and the device it is tested on."""
    return prepare(request.param, monkeypatch)


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


@pytest.mark.slow  # a quarter of a minute
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
