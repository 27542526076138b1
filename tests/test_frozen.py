"""Training with a frozen backbone: model.freeze=true, recipe=probe."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from conftest import Answer
from noah_lightning.config.compose import compose_config
from noah_lightning.errors import ConfigError
from noah_lightning.models.classifier import build_model, create_model
from noah_lightning.models.frozen import freeze, inputs_of_head
from noah_lightning.models.weights import read_weights
from noah_lightning.task import check_options, make_optimizer
from noah_lightning.train import make_task

Noah = Callable[..., Answer]
SMALL = ("experiment=demo", "recipe=probe", "data.train_images=64", "data.val_images=32", "recipe.batch_size=16")


@pytest.mark.parametrize("head", ["gap", "avg", "noah"])
def test_only_the_head_changes(head: str, noah: Noah, tmp_path: Path) -> None:
    words = (*SMALL, f"head={head}", "trainer.max_epochs=2", f"hydra.run.dir={tmp_path / 'run'}", "model.freeze=true")
    assert noah("train", *words).status == 0
    torch.manual_seed(0)
    config = compose_config([*SMALL, f"head={head}", "model.freeze=true"])
    before = {key: value.clone() for key, value in _start(config).items()}
    after = read_weights(tmp_path / "run" / "checkpoints" / "last.ckpt").state
    changed = {key for key, value in after.items() if not torch.equal(value, before[key])}
    assert changed
    assert all(key.startswith("fc." if head == "gap" else "head.") for key in changed)
    assert noah("evaluate", str(tmp_path / "run")).status == 0


def _start(config: Any) -> dict[str, torch.Tensor]:
    import lightning.pytorch as pl

    pl.seed_everything(config.seed, verbose=False)
    return build_model(config).state_dict()


@pytest.mark.parametrize("head", ["gap", "noah", "cls_mean"])
@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_a_head_reads_the_same_in_and_outside_of_its_model(name: str, head: str) -> None:
    if (name, head) == ("test_resnet", "cls_mean"):
        pytest.skip("has no class token")
    model = create_model(name, head=head, num_classes=5).eval()
    trained = freeze(model)
    images = torch.randn(2, 3, 160, 160)
    inputs = inputs_of_head(model, images)
    assert not any(tensor.requires_grad for tensor in inputs)
    torch.testing.assert_close(trained(*inputs), model(images), rtol=0, atol=0)
    kept = {id(parameter) for parameter in trained.parameters()}
    assert all(parameter.requires_grad == (id(parameter) in kept) for parameter in model.parameters())


def test_what_is_frozen_stays_in_evaluation_mode() -> None:
    config = compose_config([*SMALL, "head=avg", "model.freeze=true"])
    task = make_task(config, build_model(config), 16)
    for mode in (True, False, True):
        task.train(mode)
        modes = {name: module.training for name, module in task.model.named_modules() if name}
        assert all(training == (mode and name.startswith("head")) for name, training in modes.items())


def test_a_classifier_that_is_not_one_linear_layer_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"the classifier of .* is not one linear layer; use head=avg"):
        freeze(create_model("deit_tiny_distilled_patch16_224"))


def test_dropout_that_would_do_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"head=gap has no dropout while model\.freeze=true"):
        compose_config([*SMALL, "head=gap", "head.dropout=0.1", "model.freeze=true"])


def test_lars_scales_each_step_by_the_norm_of_the_weights() -> None:
    """One step from its definition (arXiv 1708.03888, section 4): trust × |w| / (|g| + decay |w|)."""
    recipe = compose_config([*SMALL, "recipe.optimizer.name=lars", "recipe.optimizer.weight_decay=0.1"]).recipe
    settings = recipe.optimizer
    check_options(settings)
    linear = nn.Linear(3, 2, bias=False)
    weight = linear.weight.detach().clone()
    linear.weight.grad = gradient = torch.randn(2, 3)
    optimizer = make_optimizer(linear, settings)
    optimizer.param_groups[0]["lr"] = 0.5
    optimizer.step()
    w, g = weight.double(), gradient.double()
    trust = 0.001 * w.norm() / (g.norm() + 0.1 * w.norm())
    expected = w - 0.5 * trust * (g + 0.1 * w)
    torch.testing.assert_close(linear.weight.detach().double(), expected, rtol=1e-5, atol=1e-7)
