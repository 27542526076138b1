"""What the tests of NOAH's kernels share: heads to test, and logits and gradients of the definition in float64."""

from importlib.metadata import version

import pytest
import torch
from packaging.version import Version
from torch import Tensor

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


def prepare(kernel: str, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """The kernel, made to take several slices, and the device it is tested on."""
    if kernel != "fused":
        monkeypatch.setattr(sliced, "_CPU_ELEMENTS", 1000)  # the last slice is shorter
        return kernel, "cpu"
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
