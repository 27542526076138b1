"""The paper's recipes on real photographs: a family each, from JPEG files to a validated checkpoint."""

import csv
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from conftest import Answer
from noah_lightning.data import create_data
from noah_lightning.models.classifier import build_model
from noah_lightning.models.rows import row_config
from noah_lightning.train import make_task

Noah = Callable[..., Answer]
FAMILIES = ("mobilenetv2_035", "deit_tiny_050", "pvt_tiny_050", "mixer_s16_050")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """root/{train,val}/{temple,flower}/*.jpg: pieces of scikit-learn's two photographs."""
    root = tmp_path_factory.mktemp("photos")
    for name, pixels in zip(("temple", "flower"), load_sample_images().images, strict=True):
        photo = Image.fromarray(pixels)
        for i in range(12):
            left, top = 40 * i, 20 * (i % 6)
            folder = root / ("val" if i % 3 == 2 else "train") / name
            folder.mkdir(parents=True, exist_ok=True)
            photo.crop((left, top, left + 200, top + 150 + 10 * i)).save(folder / f"{i}.jpg", quality=90)
    return root


@pytest.mark.parametrize("row", FAMILIES)
def test_a_whole_recipe_trains_on_photographs(row: str, noah: Noah, photos: Path) -> None:
    answer = noah(
        "train",
        f"model={row}",
        "head=noah",
        "data=imagefolder",
        f"data.root={photos}",
        "data.image_size=64",
        "data.num_workers=0",
        "recipe.batch_size=8",
        "trainer.max_epochs=2",
        "hydra.run.dir=run",
    )
    assert (answer.status, answer.err) == (0, "")
    lines = csv.DictReader(Path("run/metrics.csv").read_text().splitlines())
    losses = [float(line["train/loss"]) for line in lines if line["train/loss"]]
    assert len(losses) == 2
    assert all(0 < loss < 10 for loss in losses)
    evaluated = noah("evaluate", "run")
    said = re.search(r"best     epoch \d  val (top-1 .*)", answer.out)
    assert said
    assert said[1] in evaluated.out


@pytest.mark.parametrize("head", ["gap", "noah"])
@pytest.mark.parametrize("row", FAMILIES)
def test_one_batch_of_photographs_can_be_learned(row: str, head: str, photos: Path) -> None:
    """The optimiser and the model of the row, at its rate for 32 images, without what keeps it from overfitting.

    At the rate for 256, eight images make MobileNet's steps chaotic: the last loss is then a matter of rounding.
    """
    changes = [
        "data=imagefolder",
        f"data.root={photos}",
        "data.image_size=64",
        "data.batch_size=8",
        "data.num_workers=0",
        *(f"recipe.{key}=0" for key in ("head_dropout", "drop_path", "block_dropout", "label_smoothing")),
        *(f"recipe.mixing.{key}=0" for key in ("mixup", "cutmix")),
        "recipe.ema=null",
    ]
    config = row_config(row, head, changes)
    torch.manual_seed(0)
    data = create_data(**config.data.arguments())
    data.setup("fit")
    images, labels = next(iter(data.train_dataloader()))
    assert 0 < labels.sum() < 8, "both classes"
    task = make_task(config, build_model(config), batch=32).train()
    task.log = lambda *args, **kwargs: None  # type: ignore[method-assign]  # there is no trainer to log to
    optimizer = task.configure_optimizers()
    losses = []
    for step in range(15):
        loss = task.training_step((data.on_device.normalize(images), labels), step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
