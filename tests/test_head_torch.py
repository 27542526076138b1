"""NOAHHead within torch: its operator, compilation, empty batches, types, strides, transforms and export."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad

from noah_kernels import logits_and_gradients, make_head, prepare
from noah_lightning.errors import HeadSettingError
from noah_lightning.heads import NOAHHead, kernels
from noah_lightning.models.classifier import create_model

KERNELS = ["sliced", "fused", "definition"]


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


# --- empty batches and maps


@pytest.mark.parametrize("backend", [None, "aot_eager"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_an_empty_batch_has_no_logits_and_zero_gradients(
    kernel: str, backend: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of nn.Linear and of timm's heads."""
    device = prepare(kernel, monkeypatch)[1]
    head = make_head(kernel, classes=7, dropout=0.5).to(device)
    if backend:
        head.compile(backend=backend)
    found = logits_and_gradients(head, torch.randn(0, 24, 5, 5, device=device))
    assert found["logits"].shape == (0, 7)
    assert found["features"].shape == (0, 24, 5, 5)
    for name, parameter in head.named_parameters():
        assert torch.equal(found[name], torch.zeros_like(parameter))


@pytest.mark.parametrize(
    ("name", "compile_it"),
    [("test_resnet", False), ("test_resnet", True), ("shufflenetv2_100", False), ("mobilenetv3_small_noah", False)],
)
def test_a_model_takes_an_empty_batch(name: str, compile_it: bool) -> None:
    model = create_model(name, head="noah", num_classes=3).eval()
    if compile_it:
        model.compile(backend="aot_eager")
    assert model(torch.randn(0, 3, 64, 64)).shape == (0, 3)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("shape", [(2, 24, 0), (2, 24, 0, 3)])
def test_a_map_without_positions_is_refused(kernel: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"with at least one position, got \(2, 24, 0"):
        make_head(kernel)(torch.randn(shape))


# --- types of numbers


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("of_features", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("of_head", [torch.float32, torch.bfloat16])
def test_under_autocast_logits_have_the_type_of_the_parameters(
    kernel: str, half: torch.dtype, of_features: torch.dtype, of_head: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = prepare(kernel, monkeypatch)[1]
    if kernel == "fused" and device == "cpu" and half == torch.bfloat16:
        pytest.skip("Triton's interpreter multiplies no bfloat16 matrices")
    head = make_head(kernel).to(device, of_head)
    features = torch.randn(2, 24, 3, 3, device=device, dtype=of_features, requires_grad=True)
    with torch.autocast(device, half):
        logits = head(features)
        explanation = head.explain(features)
    assert {tensor.dtype for tensor in (logits, *explanation)} == {of_head}
    grads = torch.autograd.grad(logits.sum(), [features, *head.parameters()])
    assert [grad.dtype for grad in grads] == [of_features, *[of_head] * 4]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.float64, torch.complex64])
def test_features_of_another_type_are_refused(kernel: str, autocast: bool, dtype: torch.dtype) -> None:
    head = make_head(kernel)
    with torch.autocast("cpu", enabled=autocast), pytest.raises(ValueError, match="convert the features") as error:
        head(torch.ones(2, 24, 3, 3, dtype=dtype))
    assert "\n" not in str(error.value)
    assert "parameters of torch.float32" in str(error.value)
    assert str(dtype) in str(error.value)


@pytest.mark.parametrize("kernel", KERNELS)
def test_half_features_for_whole_parameters_take_autocast(kernel: str) -> None:
    with pytest.raises(ValueError, match=r"or use torch\.autocast"):
        make_head(kernel)(torch.ones(2, 24, 3, 3, dtype=torch.bfloat16))


# --- strides


@pytest.mark.parametrize("kernel", KERNELS)
def test_gradients_have_the_strides_of_their_tensors(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """DistributedDataParallel copies those that have not, and warns."""
    device = prepare(kernel, monkeypatch)[1]
    head = make_head(kernel).to(device, memory_format=torch.channels_last)
    features = torch.randn(2, 24, 3, 3, device=device).to(memory_format=torch.channels_last).requires_grad_()
    inputs = [features, *head.parameters()]
    grads = torch.autograd.grad(head(features).sin().sum(), inputs)
    first = 1 if kernel == "definition" else 0  # whose features get their gradient from torch alone
    assert [grad.stride() for grad in grads[first:]] == [tensor.stride() for tensor in inputs[first:]]


@pytest.mark.parametrize("batch", [0, 2])
def test_the_operator_announces_the_strides_it_has(batch: int) -> None:
    """Of weights in channels_last and of a feature map with gaps."""
    head = make_head("sliced", head_num=2).to(memory_format=torch.channels_last)
    features = torch.randn(batch, 24, 18, requires_grad=True)[:, :, ::2]
    arguments = (features, *head.parameters(), 2, 37, 0.0, torch.tensor(3), False)
    torch.library.opcheck(kernels.logits, arguments)
    backward = (
        torch.randn(batch, 37),
        features,
        *[dict(head.named_parameters())[n] for n in ("query.weight", "value.weight", "value.bias")],
        2,
        0.0,
        torch.tensor(3),
        False,
    )
    torch.library.opcheck(kernels.logits_backward, backward, test_utils="test_faketensor")
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fakes = [mode.from_tensor(one) if isinstance(one, Tensor) else one for one in backward]
        announced = kernels.logits_backward(*fakes)
    pairs = zip(announced[1:], kernels.logits_backward(*backward)[1:], strict=True)  # opcheck skips dimensions of 1
    assert all(fake.stride() == real.stride() for fake, real in pairs)


# --- transforms of functions


def pair() -> tuple[NOAHHead, NOAHHead, Tensor]:
    """A head as it is by default, the definition with the same weights, and features, in float64."""
    head, definition = make_head("auto", 5).double(), make_head("definition", 5).double()
    return head, definition, torch.randn(3, 24, 4, dtype=torch.float64)


def test_gradients_per_sample() -> None:
    """Each is that of a batch of one, by autograd and the sliced kernel."""
    head, _, features = pair()

    def loss(parameters: dict[str, Tensor], one: Tensor) -> Tensor:
        return torch.func.functional_call(head, parameters, one[None]).sin().sum()

    parameters = {name: parameter.detach() for name, parameter in head.named_parameters()}
    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, features)
    for i in range(3):
        expected = logits_and_gradients(head, features[i : i + 1])
        for name in parameters:
            torch.testing.assert_close(found[name][i], expected[name], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("compile_it", [False, True])
def test_transforms_and_forward_derivatives(compile_it: bool) -> None:
    head, definition, features = pair()
    tangent = torch.randn_like(features)

    def results(module: NOAHHead, features: Tensor) -> list[Tensor]:
        one = features[0]
        return [
            torch.func.vmap(module)(features[None]),
            torch.func.grad(lambda x: module(x).sin().sum())(features),
            torch.func.jvp(module, (features,), (tangent,))[1],
            torch.func.jacrev(lambda x: module(x[None]))(one),
            torch.func.hessian(lambda x: module(x[None]).sin().sum())(one[:, :2]),
        ]

    expected = results(definition, features)
    if compile_it:
        results = torch.compile(results, backend="eager")
    for one, other in zip(results(head, features), expected, strict=True):
        torch.testing.assert_close(one, other)
        assert other.any()


def test_dual_numbers() -> None:
    """Without parameters that need gradients the operator would drop the tangent in silence."""
    head, definition, features = pair()
    head.requires_grad_(False)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(features, features)
        found, expected = (forward_ad.unpack_dual(module(dual)).tangent for module in (head, definition))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kernel", ["sliced", "fused"])
def test_the_other_kernels_name_the_way_out(kernel: str) -> None:
    head, features = make_head(kernel), torch.randn(2, 24, 9)
    says = f"kernel={kernel} has no torch.func transforms and no forward-mode derivatives; use kernel=definition"
    for function in (
        lambda: torch.func.grad(lambda x: head(x).sum())(features),
        lambda: torch.func.jvp(head, (features,), (features,)),
    ):
        with pytest.raises(HeadSettingError, match=says):
            function()


def test_a_jacobian_by_vectorized_backward_passes() -> None:
    head, definition, features = pair()
    found, expected = (torch.autograd.functional.jacobian(m, features, vectorize=True) for m in (head, definition))
    torch.testing.assert_close(found, expected)


# --- export, as README.md says


@pytest.mark.parametrize("strict", [False, True])
def test_torch_export_needs_no_operator_of_ours(strict: bool, tmp_path: Path) -> None:
    """For any batch and size of map."""
    head = make_head("auto").eval()
    free = dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO)
    program = torch.export.export(head, (torch.randn(2, 24, 3, 3),), dynamic_shapes=(free,), strict=strict)
    assert not any("noah" in str(node.target) for node in program.graph.nodes if node.op == "call_function")
    torch.export.save(program, tmp_path / "head.pt2")
    loaded = torch.export.load(tmp_path / "head.pt2").module()
    others = torch.randn(4, 24, 5, 2)
    torch.testing.assert_close(loaded(others), head(others))


def test_a_whole_model_is_exported() -> None:
    model, images = create_model("test_resnet", head="noah", num_classes=3).eval(), torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(torch.export.export(model, (images,)).module()(images), model(images))


def test_a_chosen_kernel_is_exported_as_it_is() -> None:
    head, features = make_head("sliced").eval(), torch.randn(2, 24, 9)
    program = torch.export.export(head, (features,))
    assert any(node.target is torch.ops.noah.logits.default for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(features), head(features))


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore::torch.jit.TracerWarning")
def test_torch_jit_trace(tmp_path: Path) -> None:
    model = create_model("test_resnet", head="noah", num_classes=3).eval()
    traced = torch.jit.trace(model, torch.randn(2, 3, 64, 64))
    assert "noah::logits" not in str(traced.head.graph)
    traced.save(tmp_path / "model.pt")
    others = torch.randn(3, 3, 96, 64)
    torch.testing.assert_close(torch.jit.load(tmp_path / "model.pt")(others), model(others))


@pytest.mark.parametrize("dynamo", [False, True])
def test_onnx(dynamo: bool, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model = create_model("test_resnet", head="noah", num_classes=3).eval()
    file = tmp_path / "model.onnx"
    free = {0: "batch", 2: "height", 3: "width"}
    shapes = {"dynamic_shapes": (free,)} if dynamo else {"dynamic_axes": {"images": free}}
    torch.onnx.export(model, (torch.randn(2, 3, 64, 64),), file, input_names=["images"], dynamo=dynamo, **shapes)
    images = torch.randn(3, 3, 96, 64)
    (logits,) = runtime.InferenceSession(file).run(None, {"images": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), model(images), rtol=1e-4, atol=1e-5)
