"""Demonstration of both heads (``noah demo``): the same data, seed and budget, a table and a picture."""

import shlex
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import torch
from torch import Tensor

from noah_lightning.analysis.attention_pictures import draw_comparison
from noah_lightning.analysis.tables import Table
from noah_lightning.callbacks.attention_images import attention_of_guess
from noah_lightning.config.compose import compose_config
from noah_lightning.config.results import Results
from noah_lightning.config.schema import RunConfig
from noah_lightning.data import create_data
from noah_lightning.errors import ConfigError
from noah_lightning.loggers.console import duration, log
from noah_lightning.models.classifier import Classifier, load_model
from noah_lightning.train import train

HEADS = ("gap", "noah")
DRAWN = 6  # images in the picture, each of another class


def demo(overrides: Sequence[str] = ()) -> Path:
    """Train ``experiment=demo`` with each head; returns the folder that holds both runs and ``demo.png``.

    Raises:
        UserError: invalid overrides.
        RunFailed, Stopped: raised by ``train.train``.
    """
    if any(pair.startswith("head=") for pair in overrides):
        raise ConfigError("noah demo trains both heads; remove head=…, or use noah train experiment=demo head=…")
    configs = {head: compose_config(["experiment=demo", *overrides, f"head={head}"]) for head in HEADS}
    if configs["noah"].recipe.loss != "cross_entropy":
        raise ConfigError("noah demo counts the images that each head has right; for multi-label data use noah train")
    folder = Path("runs") / f"{datetime.now():%Y-%m-%d/%H-%M-%S}_demo"
    results = {}
    for head, config in configs.items():
        log.info("")
        log.info("$ noah train %s", shlex.join(["experiment=demo", *overrides, f"head={head}"]))
        results[head] = train(config, folder / head)
    comparison_table(results).show()
    log.info(verdict(results))
    log.info("picture  %s", draw_demo(folder, configs))
    return folder


def comparison_table(results: dict[str, Results]) -> Table:
    """One row per head."""
    columns = ["head", "parameters", "val top-1", "correct", "epoch", "time", "images/s"]
    rows = []
    for head, r in results.items():
        correct, best = f"{r.correct:,} of {r.images:,}", f"{r.best_epoch} of {r.epochs}"
        cells = [head, f"{r.parameters:,}", f"{r.top1:.2f} %", correct, best, duration(r.train_seconds)]
        rows.append([*cells, f"{r.images_per_second:.0f}"])
    return Table(columns, rows, left=["head"])


def verdict(results: dict[str, Results]) -> str:
    """Sentence with the head of higher validation accuracy and the difference."""
    gap, noah = results["gap"], results["noah"]
    assert noah.correct is not None
    assert gap.correct is not None
    if noah.correct == gap.correct:
        return "Both heads are right equally often."
    winner = "NOAH" if noah.correct > gap.correct else "GAP"
    points = abs(noah.top1 - gap.top1)
    return (
        f"{winner} wins by {points:.2f} points ({abs(noah.correct - gap.correct)} images), "
        f"with one seed each; another seed may differ: noah demo seed=1"
    )


def draw_demo(folder: Path, configs: dict[str, RunConfig]) -> Path:
    """Draw the first validation images of different classes; returns the picture's path."""
    data = create_data(**configs["noah"].data.arguments())
    data.prepare_data()
    data.setup("validate")
    assert data.val_dataset is not None
    images: dict[int, Tensor] = {}  # by label
    for index in range(len(data.val_dataset)):
        image, label = data.val_dataset[index]
        images.setdefault(int(label), image)
        if len(images) == DRAWN:
            break
    shown = torch.stack(list(images.values()))  # uint8 (DRAWN, 3, H, W)
    normalized = data.on_device.normalize(shown)
    models = {head: load_model(folder / head, config) for head, config in configs.items()}
    assert isinstance(models["noah"], Classifier)
    with torch.no_grad():
        probabilities = {head: model(normalized).softmax(dim=1) for head, model in models.items()}
        _, attention = attention_of_guess(models["noah"], normalized)
    path = folder / "demo.png"
    draw_comparison(path, shown, list(images), data.class_names, probabilities, attention)
    return path
