"""What can only be seen on a GPU."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from conftest import TINY, Answer

Noah = Callable[..., Answer]


@pytest.mark.gpu
@pytest.mark.parametrize(
    "trainer",
    [
        ["trainer.accelerator=gpu", "trainer.precision=bf16-mixed"],
        ["trainer=gpu"],
        ["trainer=gpu", "trainer.compile=false", "trainer.precision=16-mixed", "recipe.gradient_clip=1"],
    ],
    ids=["bf16", "preset", "float16 and clipping"],
)
def test_a_run_on_the_gpu_evaluates_to_its_own_log(noah: Noah, trainer: list[str]) -> None:
    trained = noah("train", *TINY, "head=noah", *trainer, "hydra.run.dir=run")
    assert trained.status == 0, trained.err
    evaluated = noah("evaluate", "run")
    assert evaluated.out.split("val ")[1].strip() == trained.out.splitlines()[-1].split("val ")[1].strip()
    assert Path("run/checkpoints/best.ckpt").exists()


@pytest.mark.gpu
def test_a_training_step_does_not_wait_for_the_device() -> None:
    """CUDA's sync debug mode raises at the first operation that would."""
    from noah_lightning.config.schema import OptimizerSettings, ScheduleSettings
    from noah_lightning.models.classifier import create_model
    from noah_lightning.task import ClassificationTask

    model = create_model("test_resnet", head="noah", num_classes=10, head_num=4, key_ratio=0.5)
    task = ClassificationTask(model, OptimizerSettings(name="sgd", lr=0.1), ScheduleSettings()).cuda()
    optimizer = task.configure_optimizers()
    batch = (torch.randn(8, 3, 64, 64, device="cuda"), torch.randint(10, (8,), device="cuda"))
    task.training_step(batch, 0).backward()  # cuDNN chooses its algorithms
    optimizer.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.zero_grad()
        task.training_step(batch, 1).backward()
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
