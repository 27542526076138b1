"""Plug-ins: a head, a backbone and a data set of a package outside the repository."""

import os
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from commands import Command
from conftest import Answer
from noah_lightning import data
from noah_lightning.config import plugins
from noah_lightning.data.digits import DigitsDataModule
from noah_lightning.errors import ConfigError
from noah_lightning.heads import make_head
from noah_lightning.run_dir import RunDir

MODULE = """
from typing import Literal

import timm
import torch
from torch import nn

from noah_lightning.config.choices import DataSettings
from noah_lightning.data import register_data
from noah_lightning.data.datamodule import ImageDataModule
from noah_lightning.heads import register_head


@register_head("scaled_mean")
class ScaledMean(nn.Module):
    def __init__(self, in_channels, num_classes, scale=1.0):
        super().__init__()
        self.scale, self.linear = scale, nn.Linear(in_channels, num_classes)

    def forward(self, features):
        return self.linear(self.scale * features.mean(2))


@timm.models.register_model
def tiny_of_mine(pretrained=False, **kwargs):
    return timm.create_model("test_resnet", pretrained=pretrained, **kwargs)


class StripesSettings(DataSettings):
    name: Literal["stripes"] = "stripes"
    count: int = 24


class Stripes:
    classes = ("even", "odd")

    def __init__(self, count, size):
        self.count, self.size = count, size

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        image = torch.zeros(3, self.size, self.size, dtype=torch.uint8)
        image[:, index % 2 :: 2] = 255
        return image, index % 2


@register_data("stripes")
class StripesData(ImageDataModule):
    Settings = StripesSettings

    def __init__(self, settings):
        super().__init__(settings)
        self.count = settings.count

    def build(self, split):
        return Stripes(self.count, self.image_size)
"""
SETTINGS = [
    "plugins=[mine]",
    *("head=plugin", "head.name=scaled_mean", "+head.scale=2.0"),
    *("model=timm", "model.name=tiny_of_mine", "recipe=digits", "recipe.batch_size=8", "recipe.epochs=2"),
    *("data=plugin", "data.name=stripes", "data.num_classes=2", "data.image_size=32", "data.num_workers=0"),
]


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MODULE)
    return tmp_path


def start(*words: str) -> Command:
    """``noah <words>`` in a process of its own, as a plug-in is imported once."""
    outputs = Path(tempfile.mkdtemp(dir="."))
    return Command(*words, cwd=Path.cwd(), out=outputs / "out", err=outputs / "err")


def call(*words: str) -> Answer:
    return start(*words).answer()


def test_a_run_with_plugins_is_recorded_evaluated_and_compared(mine: Path) -> None:
    done = call("train", *SETTINGS, "+data.count=32", "hydra.run.dir=runs/one")
    assert done.status == 0, done.err
    config = RunDir(mine / "runs" / "one").config()
    assert (config.plugins, config.head.name, config.data.name) == (["mine"], "scaled_mean", "stripes")
    assert RunDir(mine / "runs" / "one").results().images == 32
    # The code of an untrusted run directory runs only if the user names it.
    refused = call("evaluate", "runs/one")
    assert (refused.status, refused.err.count("\n")) == (2, 1)
    assert "if you trust it, add plugins=[mine]" in refused.err
    done = call("evaluate", "runs/one", "plugins=[mine]")
    assert done.status == 0, done.err
    (mine / "mine.py").unlink()  # comparing needs no code
    done = call("compare", "runs", "--csv")
    assert done.status == 0, done.err
    assert "scaled_mean" in done.out


def test_a_sweep_over_a_plugins_setting(mine: Path) -> None:
    words = [*SETTINGS[:3], "+head.scale=0.5,2.0", *SETTINGS[4:], "sweep.dir=runs/two"]
    done = call("train", "-m", *words)
    assert done.status == 0, done.err
    scales = [RunDir(mine / "runs" / "two" / str(job)).config().head.scale for job in (0, 1)]
    assert scales == [0.5, 2.0]


def test_an_interrupted_run_with_plugins_resumes(mine: Path) -> None:
    words = [*SETTINGS, "+data.count=320", "checkpoint.every_n_steps=10", "hydra.run.dir=runs/one"]
    process = start("train", *words)
    while not list(Path("runs/one/checkpoints").glob("step-*.ckpt")) and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 128 + signal.SIGTERM
    done = call("resume", "runs/one", "plugins=[mine]")
    assert done.status == 0, done.err
    assert RunDir(mine / "runs" / "one").results().epochs == 2


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("import nothing_of_this_name", "plugins=[mine] cannot be imported: ModuleNotFoundError"),
        ("1 / 0", "plugins=[mine] cannot be imported: ZeroDivisionError: division by zero"),
    ],
)
def test_a_plugin_that_cannot_be_imported_is_one_line(
    mine: Path, noah: Callable[..., Answer], text: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(mine)
    (mine / "mine.py").write_text(text)
    answer = noah("train", "experiment=demo", "plugins=[mine]")
    assert (answer.status, answer.err.count("\n")) == (2, 1)
    assert told in answer.err
    assert not os.path.exists("runs")


@pytest.mark.parametrize("name", ["digits", "dots"])
def test_a_data_set_is_registered_once(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(data.REGISTRY, "dots", DigitsDataModule)
    with pytest.raises(ConfigError, match=f"registers the data set '{name}', which exists already"):
        data.register_data(name)(DigitsDataModule)


def test_an_installed_package_names_its_module(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []

    class Entry:
        name, value = "mine", "mine"

        def load(self) -> None:
            loaded.append(self.name)

    plugins.load_installed_plugins.cache_clear()
    monkeypatch.setattr(plugins, "entry_points", lambda group: [Entry()] if group == plugins.GROUP else [])
    for _ in range(2):
        with pytest.raises(ValueError, match="no head is called 'theirs'"):
            make_head("theirs", 8, 2)
    assert loaded == ["mine"]
    plugins.load_installed_plugins.cache_clear()
