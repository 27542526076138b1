"""The paper's architectures that timm lacks: they behave as timm's models do, and compute what they should."""

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from timm.layers import GatedMlp
from timm.models.mlp_mixer import MlpMixer, SpatialGatingBlock
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from noah_lightning.errors import WeightsError
from noah_lightning.models import make_backbone
from noah_lightning.models.classifier import create_model
from noah_lightning.models.rows import count_parameters, create_row
from noah_lightning.models.zoo.convolutional import InvertedResidual
from noah_lightning.models.zoo.tokens import Attention, Block
from noah_lightning.task.optimizer import parameter_groups

# name -> what is left of two images of 224 pixels without pooling
UNPOOLED = {
    "mobilenetv3_small_noah": (2, 1280, 7, 7),
    "shufflenetv2_100": (2, 1024, 7, 7),
    "pvt_v1_tiny": (2, 50, 512),
    "pvt_v1_tiny_075": (2, 50, 384),
    "pvt_v1_tiny_050": (2, 50, 256),
    "deit_tiny_075_patch16_224": (2, 197, 144),
    "deit_tiny_050_patch16_224": (2, 197, 96),
    "mixer_s16_075_224": (2, 196, 384),
    "mixer_s16_050_224": (2, 196, 256),
    "gmlp_ti16_075_224": (2, 196, 96),
    "gmlp_ti16_050_224": (2, 196, 64),
}
OWN = list(UNPOOLED)
ONE_OF_EACH_KIND = ["mobilenetv3_small_noah", "shufflenetv2_100", "pvt_v1_tiny_050", "deit_tiny_050_patch16_224"]
ONE_OF_EACH_KIND += ["mixer_s16_050_224", "gmlp_ti16_050_224"]


def build(name: str, **model_args) -> nn.Module:
    """The model with random weights everywhere, also where they start at 0, in evaluation mode."""
    torch.manual_seed(0)
    model = timm.create_model(name, **{"num_classes": 7, **model_args})
    randomize(model)
    return model.eval()


def randomize(model: nn.Module) -> None:
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                noise = 0.1 * torch.randn_like(tensor)
                tensor.add_(noise.abs() if key.endswith("running_var") else noise)


def images(side: int = 224, width: int | None = None, count: int = 2) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(count, 3, side, width or side)


# --- what timm's models do


def test_timm_lists_them() -> None:
    assert set(OWN) <= set(timm.list_models())


@pytest.mark.parametrize("name", OWN)
def test_timm_builds_them_and_takes_classifier_and_pooling_off(name: str) -> None:
    nothing = torch.empty(2, 3, 224, 224, device="meta")
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=7)
        assert model(nothing).shape == (2, 7)
        assert model.get_classifier().out_features == model.num_classes == 7
        model.reset_classifier(5)  # keeps the pooling
        assert model(nothing).shape == (2, 5)
        model.reset_classifier(0)  # gives what the classifier would see
        assert model(nothing).shape == (2, model.head_hidden_size)
        model.reset_classifier(0, "")
        assert model(nothing).shape == UNPOOLED[name]
        assert isinstance(model.get_classifier(), nn.Identity)


@pytest.mark.parametrize("name", ONE_OF_EACH_KIND)
def test_timm_builds_them_without_a_classifier(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0)
        assert model(torch.empty(2, 3, 224, 224)).shape == (2, model.head_hidden_size)


@pytest.mark.parametrize("name", ONE_OF_EACH_KIND)
def test_forward_is_the_features_then_the_head_then_the_classifier(name: str) -> None:
    model = build(name)
    with torch.no_grad():
        features = model.forward_features(images())
        expected = model.forward_head(features)
        assert torch.equal(model(images()), expected)
        torch.testing.assert_close(model.get_classifier()(model.forward_head(features, pre_logits=True)), expected)


@pytest.mark.parametrize("name", ONE_OF_EACH_KIND)
def test_drop_rate_drops_half_of_what_the_classifier_sees_and_only_while_training(name: str) -> None:
    model = build(name, drop_rate=0.5)
    seen = []
    model.get_classifier().register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        features = model.forward_features(images())
        model.forward_head(features)
        model.train().forward_head(features)
    whole, dropped = seen
    assert 0.4 < (dropped == 0)[whole != 0].float().mean() < 0.6
    torch.testing.assert_close(dropped, torch.where(dropped == 0, 0.0, 2 * whole))
    torch.testing.assert_close(model.eval()(images()), build(name)(images()))


@pytest.mark.parametrize("name", ONE_OF_EACH_KIND)
def test_a_file_of_weights_is_taken_whole_but_for_another_classifier(name: str, tmp_path: Path) -> None:
    source = build(name).state_dict()
    torch.save(source, tmp_path / "weights.pt")
    classifier = {key for key in source if source[key].shape[:1] == (7,)}
    assert len(classifier) == 2
    for num_classes, compared in ((7, source.keys()), (5, source.keys() - classifier)):
        loaded = create_model(name, "gap", num_classes, weights=str(tmp_path / "weights.pt")).state_dict()
        assert all(torch.equal(loaded[key], source[key]) for key in compared)


@pytest.mark.parametrize("name", OWN)
def test_there_are_no_pretrained_weights(name: str) -> None:
    with pytest.raises(WeightsError, match=f"^pretrained weights of {name} are not available") as error:
        create_model(name, "gap", 7, pretrained=True)
    assert "\n" not in str(error.value)


# --- MobileNetV3-Small


def hard_sigmoid(x: Tensor) -> Tensor:
    return (x + 3).clamp(0, 6) / 6


def hard_swish(x: Tensor) -> Tensor:
    return x * hard_sigmoid(x)


def batch_norm(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    mean, variance, weight, bias = (
        v[:, None, None] for v in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    return (x - mean) / (variance + norm.eps).sqrt() * weight + bias


@pytest.mark.parametrize(
    ("index", "act", "stride", "residual"),
    [(0, torch.relu, 2, False), (3, hard_swish, 2, False), (4, hard_swish, 1, True)],
)
def test_mobilenetv3s_squeeze_comes_before_the_activation(
    index: int, act: Callable[[Tensor], Tensor], stride: int, residual: bool
) -> None:
    block = build("mobilenetv3_small_noah").blocks[index]
    assert isinstance(block, InvertedResidual)
    expand, norm1, _, depthwise, norm2, squeeze, _, project, norm3 = block
    x = torch.randn(2, expand.in_channels, 12, 12)
    with torch.no_grad():
        y = act(batch_norm(F.conv2d(x, expand.weight), norm1))
        kernel = depthwise.weight.shape[2]
        y = batch_norm(F.conv2d(y, depthwise.weight, None, stride, kernel // 2, groups=len(depthwise.weight)), norm2)
        mean = y.mean((2, 3))
        gate = hard_sigmoid(torch.relu(mean @ squeeze.reduce.weight.T) @ squeeze.expand.weight.T)
        y = batch_norm(F.conv2d(act(y * gate[:, :, None, None]), project.weight), norm3)
        torch.testing.assert_close(block(x), x + y if residual else y, rtol=1e-4, atol=1e-5)


def test_mobilenetv3s_last_convolution_runs_on_the_mean_or_on_every_position() -> None:
    model = build("mobilenetv3_small_noah")
    last = model.conv_head
    with torch.no_grad():
        features = model.forward_features(images(64))  # (2, 576, 2, 2)
        pooled = hard_swish(features.mean((2, 3)) @ last.weight[:, :, 0, 0].T + last.bias)
        torch.testing.assert_close(model.forward_head(features, pre_logits=True), pooled)
        model.reset_classifier(0, "")
        every = hard_swish(
            torch.einsum("bchw,dc->bdhw", features, last.weight[:, :, 0, 0]) + last.bias[:, None, None]
        )
        torch.testing.assert_close(model(images(64)), every)


# --- ShuffleNetV2


def test_shufflenet_is_torchvisions() -> None:
    ours, theirs = build("shufflenetv2_100"), torchvision.models.shufflenet_v2_x1_0(num_classes=7).eval()
    theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        assert torch.equal(ours(images(96)), theirs(images(96)))


# --- PVT


def reduced_map(x: Tensor, attention: Attention, size: tuple[int, int]) -> Tensor:
    """Patches of R×R positions, each through one linear map, and normed: what a strided convolution does."""
    (rows, columns), r = size, attention.sr.stride[0]
    patches = x.unflatten(1, (rows // r, r, columns // r, r))  # (B, H/R, R, W/R, R, C)
    x = torch.einsum("bhiwjc,dcij->bhwd", patches, attention.sr.weight).flatten(1, 2) + attention.sr.bias
    return F.layer_norm(x, x.shape[2:], attention.norm.weight, attention.norm.bias, eps=1e-5)


@pytest.mark.parametrize(("heads", "reduction"), [(1, 1), (3, 1), (1, 2), (3, 2), (2, 4)])
def test_pvts_attention_is_the_softmax_of_the_equations(heads: int, reduction: int) -> None:
    torch.manual_seed(0)
    width, size = 12, (4, 8)
    attention = Attention(width, heads, reduction)
    randomize(attention)
    x = torch.randn(2, 32, width)
    with torch.no_grad():
        source = x if reduction == 1 else reduced_map(x, attention, size)
        q = x @ attention.q.weight.T + attention.q.bias
        k, v = (source @ attention.kv.weight.T + attention.kv.bias).split(width, dim=2)
        outputs = []
        for h in range(heads):
            own = slice(h * width // heads, (h + 1) * width // heads)
            scores = torch.einsum("blc,bmc->blm", q[..., own], k[..., own]) / (width / heads) ** 0.5
            outputs.append(scores.softmax(2) @ v[..., own])
        expected = torch.cat(outputs, 2) @ attention.proj.weight.T + attention.proj.bias
        torch.testing.assert_close(attention(x, size), expected, rtol=1e-4, atol=1e-5)


def test_pvts_block_norms_before_each_branch() -> None:
    torch.manual_seed(0)
    block = Block(12, 3, 2, 2, drop_path=0.0)
    randomize(block)
    x, size = torch.randn(2, 16, 12), (4, 4)
    with torch.no_grad():
        y = x + block.attn(F.layer_norm(x, (12,), block.norm1.weight, block.norm1.bias, eps=1e-6), size)
        z = F.layer_norm(y, (12,), block.norm2.weight, block.norm2.bias, eps=1e-6)
        z = F.gelu(z @ block.mlp.fc1.weight.T + block.mlp.fc1.bias) @ block.mlp.fc2.weight.T + block.mlp.fc2.bias
        torch.testing.assert_close(block(x, size), y + z, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(64, 64), (96, 96), (64, 96), (224, 224)])
def test_pvts_position_embeddings_are_resized_bilinearly(size: tuple[int, int]) -> None:
    model = build("pvt_v1_tiny_050")
    patches, entered = [], []
    for stage in model.stages:
        stage.patch_embed.register_forward_hook(lambda _, inputs, output: patches.append(output))
        stage.blocks[0].register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
    with torch.no_grad():
        model(images(*size))
        for i, stage in enumerate(model.stages):
            prefix = 1 if i == 3 else 0
            grid, stride = 56 // 2**i, 4 * 2**i
            embedding = stage.pos_embed[:, prefix:].unflatten(1, (grid, grid)).permute(0, 3, 1, 2)
            target = (size[0] // stride, size[1] // stride)
            positions = F.interpolate(embedding, target, mode="bilinear", align_corners=False).flatten(2).mT
            torch.testing.assert_close(entered[i][:, prefix:], patches[i] + positions, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(entered[3][:, :1], (model.cls_token + stage.pos_embed[:, :1]).expand(2, -1, -1))


@pytest.mark.parametrize(("side", "positions"), [(64, 4), (96, 9)])
def test_pvt_takes_images_of_other_sizes(side: int, positions: int) -> None:
    model, backbone = build("pvt_v1_tiny_050"), make_backbone("pvt_v1_tiny_050")
    with torch.no_grad():
        assert model(images(side)).shape == (2, 7)
        assert backbone(images(side)).shape == (2, 256, positions)


def test_pvt_can_be_made_for_another_size() -> None:
    model = build("pvt_v1_tiny_050", img_size=64)
    assert [stage.pos_embed.shape[1] for stage in model.stages] == [256, 64, 16, 4 + 1]


def test_pvts_pooling_is_the_class_token_or_the_mean_of_the_positions() -> None:
    model = build("pvt_v1_tiny_050", num_classes=0)
    with torch.no_grad():
        tokens = model.forward_features(images(64))
        assert torch.equal(model(images(64)), tokens[:, 0])
        model.reset_classifier(0, "avg")
        torch.testing.assert_close(model(images(64)), tokens[:, 1:].mean(1))


def test_pvts_stochastic_depth_rises_linearly_over_all_blocks() -> None:
    blocks = [block for stage in build("pvt_v1_tiny", drop_path_rate=0.7).stages for block in stage.blocks]
    assert [block.drop_path.drop_prob for block in blocks] == pytest.approx([0.1 * i for i in range(8)])


def test_pvts_stochastic_depth_skips_both_branches_while_training() -> None:
    torch.manual_seed(0)
    block = Block(8, 2, 2, 1, drop_path=1 - 1e-9)
    x = torch.randn(2, 4, 8)
    assert torch.equal(block(x, (2, 2)), x)
    assert not torch.allclose(block.eval()(x, (2, 2)), x)


@pytest.mark.parametrize("head", ["gap", "noah"])
def test_pvts_embeddings_do_not_decay(head: str) -> None:
    model = create_model("pvt_v1_tiny_050", head, 8)
    embeddings = {f"stages.{i}.pos_embed" for i in range(4)} | {"cls_token"}
    prefix = "backbone.model." if head == "noah" else ""
    assert model.no_weight_decay() == {prefix + name for name in embeddings}
    decay = {p: group["weight_decay"] for group in parameter_groups(model, 0.05, "matrices") for p in group["params"]}
    for name, parameter in model.named_parameters():
        spared = name.removeprefix(prefix) in embeddings or parameter.ndim == 1
        assert decay[parameter] == (0 if spared else 0.05), name


# --- DeiT, Mixer, gMLP: timm's classes with other widths


@pytest.mark.parametrize(("name", "width"), [("deit_tiny_075_patch16_224", 144), ("deit_tiny_050_patch16_224", 96)])
def test_narrow_deit_is_timms_vision_transformer(name: str, width: int) -> None:
    ours = build(name)
    timms = VisionTransformer(patch_size=16, embed_dim=width, depth=12, num_heads=3, num_classes=7).eval()
    timms.load_state_dict(ours.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(ours(images()), timms(images()))


MIXER = {"num_blocks": 8}
GMLP = {"num_blocks": 30, "mlp_ratio": 6, "block_layer": SpatialGatingBlock, "mlp_layer": GatedMlp}


@pytest.mark.parametrize(
    ("name", "width", "args"),
    [
        ("mixer_s16_075_224", 384, MIXER),
        ("mixer_s16_050_224", 256, MIXER),
        ("gmlp_ti16_075_224", 96, GMLP),
        ("gmlp_ti16_050_224", 64, GMLP),
    ],
)
def test_a_narrow_mixer_or_gmlp_is_timms(name: str, width: int, args: dict) -> None:
    ours, timms = build(name), MlpMixer(patch_size=16, embed_dim=width, num_classes=7, **args).eval()
    timms.load_state_dict(ours.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(ours(images()), timms(images()))


@pytest.mark.parametrize("name", ["deit_tiny_075_patch16_224", "deit_tiny_050_patch16_224"])
def test_the_released_layer_is_linear_and_tanh_before_the_classifier(name: str) -> None:
    model, plain = build(name, pre_logits=True, img_size=64), build(name, img_size=64, num_classes=0)
    state = model.state_dict()
    plain.load_state_dict({key: state[key] for key in plain.state_dict()})
    with torch.no_grad():
        token = plain(images(64))
        hidden = torch.tanh(token @ state["pre_logits.fc.weight"].T + state["pre_logits.fc.bias"])
        assert hidden.shape == (2, 192)
        torch.testing.assert_close(model(images(64)), hidden @ state["head.weight"].T + state["head.bias"])


def test_under_noah_the_released_layer_runs_on_every_position() -> None:
    torch.manual_seed(0)
    args = {"pre_logits": True, "img_size": 64}
    backbone = make_backbone("deit_tiny_050_patch16_224", class_token=False, **args).eval()
    with torch.no_grad():
        tokens = backbone.model.forward_features(images(64))  # (2, 16, 96)
        layer = backbone.model.pre_logits.fc
        expected = torch.tanh(tokens @ layer.weight.T + layer.bias).mT
        torch.testing.assert_close(backbone(images(64)), expected)
    assert backbone.out_channels == 192


@pytest.mark.parametrize(
    ("row", "head", "with_layer", "without"),
    [
        ("deit_tiny_075", "gap", 3_368_824, 3_292_984),
        ("deit_tiny_075", "noah", 3_375_536, 3_299_696),
        ("deit_tiny_050", "gap", 1_646_728, 1_532_104),
        ("deit_tiny_050", "noah", 1_653_536, 1_538_912),
    ],
)
def test_narrow_deits_parameters(row: str, head: str, with_layer: int, without: int) -> None:
    with torch.device("meta"):
        assert count_parameters(create_row(row, head)) == without
        assert count_parameters(create_row(row, head, ["model.args.pre_logits=true"])) == with_layer


@pytest.mark.parametrize("args", [{}, {"pre_logits": True}])
def test_narrow_deits_weights_fit_another_image_size(args: dict, tmp_path: Path) -> None:
    name = "deit_tiny_050_patch16_224"
    source = build(name, **args)
    torch.save(source.state_dict(), tmp_path / "weights.pt")
    model = create_model(name, "gap", 7, weights=str(tmp_path / "weights.pt"), image_size=64, model_args=args)
    grid = source.pos_embed[:, 1:].unflatten(1, (14, 14)).permute(0, 3, 1, 2)
    resized = F.interpolate(grid, (4, 4), mode="bicubic", antialias=True).flatten(2).mT
    torch.testing.assert_close(model.pos_embed[:, 1:], resized)
    others = source.state_dict().keys() - {"pos_embed"}
    assert all(torch.equal(model.state_dict()[key], source.state_dict()[key]) for key in others)


@pytest.mark.parametrize(
    ("row", "embedding", "positions"),
    [
        ("deit_tiny", "pos_embed", 196),
        ("deit_tiny_075", "pos_embed", 196),
        ("deit_tiny_050", "pos_embed", 196),
        ("pvt_tiny", "stages.3.pos_embed", 49),
        ("pvt_tiny_075", "stages.3.pos_embed", 49),
        ("pvt_tiny_050", "stages.3.pos_embed", 49),
    ],
)
def test_with_noah_there_is_no_class_token_and_in_the_baseline_there_is(
    row: str, embedding: str, positions: int
) -> None:
    with torch.device("meta"):
        noah, gap = create_row(row, "noah").backbone.model, create_row(row, "gap")
    assert noah.cls_token is None
    assert gap.cls_token is not None
    assert (noah.get_parameter(embedding).shape[1], gap.get_parameter(embedding).shape[1]) == (
        positions,
        positions + 1,
    )
