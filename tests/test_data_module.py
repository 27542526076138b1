"""What all data modules share: order, loaders, normalisation, checks. And the choice by name."""

import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from noah_lightning.config.choices import AugmentSettings, DataSettings
from noah_lightning.config.compose import compose_config
from noah_lightning.config.parsing import parse
from noah_lightning.data import create_data
from noah_lightning.data import datamodule as module_file
from noah_lightning.data.datamodule import ImageDataModule, Split, default_workers
from noah_lightning.errors import ConfigError, DataError
from noah_lightning.tools.pack import pack


class Numbered:
    """Images whose label is their own index; each also reveals the worker's random state, if asked."""

    def __init__(self, length: int, reveal: bool = False) -> None:
        self.length, self.reveal = length, reveal
        self.classes = ["a", "b"]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = torch.full((3, 4, 4), index % 256, dtype=torch.uint8)
        if self.reveal:
            drawn = int(torch.randint(256, ())), random.randrange(256), int(np.random.randint(256))
            image = torch.tensor(drawn, dtype=torch.uint8)[:, None, None].expand(3, 4, 4)
        return image, index


class Threads:
    """One image, whose label is the number of threads that torch uses where it is loaded."""

    classes = ("a", "b")

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.zeros(3, 4, 4, dtype=torch.uint8), torch.get_num_threads()


class NumberedDataModule(ImageDataModule):
    lengths: tuple[int, int] = (20, 11)
    reveal = False

    def build(self, split: Split) -> Numbered:
        return Numbered(self.lengths[split == "val"], self.reveal)


SETTINGS: dict[str, Any] = {
    "num_classes": 2,
    "mean": [0.1, 0.2, 0.3],
    "std": [0.5, 0.25, 0.125],
    "image_size": 4,
    "batch_size": 8,
    "num_workers": 0,
    "seed": 0,
}


def ready(lengths: tuple[int, int] = (20, 11), reveal: bool = False, **changes: object) -> NumberedDataModule:
    unreadable = changes.pop("max_unreadable", 0)
    augment = changes.pop("augment", AugmentSettings())
    data = NumberedDataModule(DataSettings(name="numbered", **{**SETTINGS, **changes}), augment, unreadable)
    data.lengths, data.reveal = lengths, reveal
    data.setup("fit")
    return data


def order(loader: torch.utils.data.DataLoader) -> list[int]:
    return [int(label) for _, labels in loader for label in labels]


class TestOrder:
    def test_depends_on_the_seed_and_not_on_global_state(self) -> None:
        torch.manual_seed(1)
        first = order(ready((64, 1)).train_dataloader())
        torch.manual_seed(2)
        assert order(ready((64, 1)).train_dataloader()) == first
        assert order(ready((64, 1), seed=1).train_dataloader()) != first
        assert sorted(first) == list(range(64))
        assert first != sorted(first)

    def test_leaves_global_state_alone(self) -> None:
        data = ready()
        torch.manual_seed(3)
        before = torch.get_rng_state()
        order(data.train_dataloader())
        order(data.val_dataloader())
        assert torch.equal(before, torch.get_rng_state())

    def test_changes_each_epoch(self) -> None:
        loader = ready((64, 1)).train_dataloader()
        first, second, third = order(loader), order(loader), order(loader)
        assert first != second != third != first
        assert sorted(second) == sorted(third) == list(range(64))

    def test_val_is_fixed_and_whole(self) -> None:
        loader = ready().val_dataloader()
        assert order(loader) == order(loader) == list(range(11))


class TestLastBatch:
    def test_short_one_is_dropped_in_training(self) -> None:
        loader = ready((20, 1)).train_dataloader()
        assert [len(labels) for _, labels in loader] == [8, 8]

    def test_set_of_one_batch_is_kept(self) -> None:
        assert [len(labels) for _, labels in ready((8, 1)).train_dataloader()] == [8]

    def test_set_below_one_batch_is_kept(self) -> None:
        assert [len(labels) for _, labels in ready((5, 1)).train_dataloader()] == [5]

    def test_one_batch_per_process_counts(self) -> None:
        data = ready((12, 1))
        data._rank_of = lambda: (0, 2)
        assert [len(labels) for _, labels in data.train_dataloader()] == [6], "of 2 processes, below one batch"


class TestBatches:
    def test_types_and_shapes(self) -> None:
        data = ready()
        for loader in (data.train_dataloader(), data.val_dataloader()):
            images, labels = next(iter(loader))
            assert images.dtype == torch.uint8
            assert images.shape == (8, 3, 4, 4)
            assert labels.dtype == torch.int64
            assert labels.shape == (8,)

    def test_pinned_only_with_cuda(self) -> None:
        data = ready()
        assert data.train_dataloader().pin_memory == torch.cuda.is_available()
        assert data.val_dataloader().pin_memory == torch.cuda.is_available()

    def test_workers_persist(self) -> None:
        data = ready(num_workers=1)
        assert data.train_dataloader().persistent_workers
        assert data.val_dataloader().persistent_workers
        assert not ready().train_dataloader().persistent_workers

    def test_workers_draw_from_the_seed(self) -> None:
        """torch, random and numpy within the workers: the same again, other with another seed."""

        def drawn(seed: int) -> Tensor:
            loader = ready((32, 1), reveal=True, num_workers=2, seed=seed).train_dataloader()
            return torch.stack([images[:, :, 0, 0] for images, _ in loader])  # (batches, B, 3 generators)

        first = drawn(0)
        random.seed(9), np.random.seed(9), torch.manual_seed(9)
        assert torch.equal(first, drawn(0))
        other = drawn(1)
        assert all(not torch.equal(first[..., k], other[..., k]) for k in range(3))
        assert not torch.equal(first[0], first[1]), "two workers, two streams"

    def test_a_worker_has_one_thread(self) -> None:
        """Workers are as many as cores: torch scales images with one thread in each of them."""
        data = ready(num_workers=1)
        before = torch.get_num_threads()
        torch.set_num_threads(2)  # a worker is a fork of this process
        try:
            data.val_dataset = Threads()
            assert [labels.tolist() for _, labels in data.val_dataloader()] == [[1]]
        finally:
            torch.set_num_threads(before)


class TestNormalize:
    def test_formula(self) -> None:
        data = ready()
        images = torch.randint(256, (2, 3, 5, 7), dtype=torch.uint8)
        before = images.clone()
        result = data.on_device.normalize(images)
        mean, std = (torch.tensor(SETTINGS[key], dtype=torch.float64) for key in ("mean", "std"))
        expected = (images.double() / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
        assert result.dtype == torch.float32
        torch.testing.assert_close(result.double(), expected, rtol=0, atol=1e-6)
        assert torch.equal(images, before)

    def test_applied_after_transfer(self) -> None:
        data = ready()
        images, labels = next(iter(data.val_dataloader()))
        result, same_labels = data.on_after_batch_transfer((images, labels), 0)
        assert torch.equal(result, data.on_device.normalize(images))
        assert same_labels is labels

    def test_trainable_after_a_validation_in_inference_mode(self) -> None:
        data = ready()
        images = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
        with torch.inference_mode():
            data.on_device.normalize(images)
        layer = torch.nn.Conv2d(3, 1, 4)
        layer(data.on_device.normalize(images)).sum().backward()
        assert layer.weight.grad is not None

    def test_constants_are_copied_once_per_device(self, monkeypatch: pytest.MonkeyPatch) -> None:
        data = ready()
        images = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
        data.on_device.normalize(images)
        monkeypatch.setattr(module_file.torch, "tensor", None)  # calling it again would fail
        data.on_device.normalize(images)
        monkeypatch.undo()
        assert data.on_device.normalize(images.to("meta")).device.type == "meta"


class TestSetup:
    def test_fit_builds_both_validate_only_one(self) -> None:
        data = ready()
        assert data.train_dataset is not None
        assert data.class_names == ["a", "b"]
        data = NumberedDataModule(DataSettings(name="numbered", **SETTINGS))
        data.setup("validate")
        assert data.train_dataset is None
        assert data.val_dataset is not None
        assert data.class_names == ["a", "b"]

    @pytest.mark.parametrize(("lengths", "split"), [((0, 5), "train"), ((5, 0), "val")])
    def test_empty_split(self, lengths: tuple[int, int], split: str) -> None:
        with pytest.raises(DataError, match=f"^the {split} set has no images$"):
            ready(lengths)

    def test_other_class_count(self) -> None:
        with pytest.raises(DataError, match=r"^data.num_classes=3, but .* 2 classes: set data.num_classes=2$"):
            ready(num_classes=3)


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("num_classes", 0, "at least 1"),
        ("num_classes", None, "at least 1"),
        ("image_size", -1, "at least 1"),
        ("image_size", 224.0, "at least 1"),
        ("batch_size", 0, "at least 1"),
        ("batch_size", True, "at least 1"),
        ("num_workers", -1, "at least 0"),
        ("seed", -1, "at least 0"),
        ("mean", [0.5, 0.5], "3 numbers from 0 to 1"),
        ("mean", [123.7, 116.3, 103.5], "3 numbers from 0 to 1"),
        ("mean", "abc", "3 numbers from 0 to 1"),
        ("std", [0.5, 0.0, 0.5], "3 numbers above 0"),
        ("std", [0.5, float("nan"), 0.5], "3 numbers above 0"),
        ("std", 0.5, "3 numbers above 0"),
    ],
)
def test_settings_out_of_range(key: str, value: object, allowed: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(DataSettings, {"name": "numbered", **SETTINGS, key: value}, "data")
    message = str(caught.value)
    assert message.startswith(f"data.{key}=")
    assert allowed in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("cpus", "processes", "workers"),
    [
        (1, None, 0),
        (2, None, 1),
        (5, None, 4),
        (64, None, 8),
        (16, 1, 8),
        (16, 4, 3),
        (2, 2, 0),
        (2, 4, 0),
        (64, 4, 8),
    ],
)
def test_default_workers(monkeypatch: pytest.MonkeyPatch, cpus: int, processes: int | None, workers: int) -> None:
    """Processes of one run share the CPUs of their machine."""
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if processes:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    monkeypatch.setattr(module_file.os, "sched_getaffinity", lambda _: set(range(cpus)), raising=False)
    assert default_workers() == workers
    assert ready(num_workers=None).num_workers == workers


class Recorder(LightningModule):
    """Trains nothing; notes the label order of each epoch and the type its batches arrive in."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: dict[int, list[int]] = {}
        self.dtypes: set[torch.dtype] = set()

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        self.seen.setdefault(self.current_epoch, []).extend(batch[1].tolist())
        self.dtypes.add(batch[0].dtype)
        return self.weight * 0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize(("num_workers", "repeats"), [(0, 1), (1, 1), (0, 3), (1, 3)])
def test_resumed_run_sees_the_order_of_the_uninterrupted_one(tmp_path: Path, num_workers: int, repeats: int) -> None:
    augment = AugmentSettings(repeats=repeats)

    def fit(epochs: int, checkpoint: str | None = None) -> tuple[Recorder, Trainer]:
        trainer = Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        model = Recorder()
        trainer.fit(model, datamodule=ready((40, 1), num_workers=num_workers, augment=augment), ckpt_path=checkpoint)
        return model, trainer

    whole, _ = fit(3)
    first, trainer = fit(1)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    rest, _ = fit(3, str(tmp_path / "half.ckpt"))
    assert whole.dtypes == {torch.float32}, "normalised by Lightning's hook"
    assert first.seen[0] == whole.seen[0]
    assert rest.seen == {1: whole.seen[1], 2: whole.seen[2]}
    assert whole.seen[0] != whole.seen[1] != whole.seen[2]


class TestCreateData:
    def test_unknown_name(self) -> None:
        with pytest.raises(ConfigError) as caught:
            create_data("imagnet")
        message = str(caught.value)
        assert "\n" not in message
        assert "did you mean imagenet" in message
        assert all(name in message for name in ("digits", "imagefolder", "imagenet"))

    @pytest.mark.parametrize("changes", [{"colour": 1}])
    def test_wrong_settings(self, changes: dict) -> None:
        settings = {**SETTINGS, **changes}
        with pytest.raises(ConfigError, match=f"^unknown setting 'data.{next(iter(changes))}'"):
            create_data("digits", **settings)

    @pytest.mark.parametrize("name", ["digits", "fashion_mnist", "imagefolder", "imagenet", "mnist", "packed"])
    def test_has_the_defaults_of_the_command_line(self, name: str, jpeg_tree: Path, tmp_path: Path) -> None:
        root = tmp_path / "packed" if name == "packed" else jpeg_tree
        if name == "packed":
            pack(jpeg_tree, root, 10**6)
        given = {} if name == "digits" else {"root": str(root)}
        composed = compose_config([f"data={name}", "recipe=plain", *(f"data.{key}={given[key]}" for key in given)])
        assert create_data(name, **given).settings == composed.data

    def test_counts_no_classes_that_are_given(self) -> None:
        assert create_data("imagefolder", num_classes=3, root="elsewhere").num_classes == 3

    def test_imports_nothing_heavy(self) -> None:
        program = (
            "import sys, noah_lightning.data, noah_lightning.data.tree\n"
            "heavy = {'torch', 'torchvision', 'timm', 'sklearn', 'lightning'} & sys.modules.keys()\n"
            "assert not heavy, heavy\n"
        )
        subprocess.run([sys.executable, "-c", program], check=True, env={"PYTHONPATH": ":".join(sys.path)})

    def test_knows_no_models(self) -> None:
        """The data room imports from no room but that of the configuration."""
        for file in Path(module_file.__file__).parent.glob("*.py"):
            rooms = set(re.findall(r"noah_lightning\.(\w+)", file.read_text()))
            assert rooms <= {"config", "data", "errors"}, file
