"""data.holdout: a part of the training images is the validation set."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from conftest import TINY, Answer
from noah_lightning.config.choices import DataSettings
from noah_lightning.data import create_data
from noah_lightning.data.datamodule import ImageDataModule, Split
from noah_lightning.data.image import Picture
from noah_lightning.data.subsets import Subset, hold_out
from noah_lightning.data.transforms import eval_transform
from noah_lightning.errors import DataError
from noah_lightning.run_dir import RunDir
from noah_lightning.tools.pack import pack
from test_data_folder import photograph
from test_data_imagenet import archives, imagenet, of_three_classes  # noqa: F401  # fixtures

SMALL: dict[str, Any] = {"image_size": 32, "batch_size": 4, "num_workers": 0}


class Labeled:
    """Images without pixels; ``labels`` only if asked for, else an image has to be read."""

    classes = ("ant", "bee", "cat")

    def __init__(self, labels: Any, shown: bool = True) -> None:
        self.given, self.read = labels, 0
        if shown:
            self.labels = labels

    def __len__(self) -> int:
        return len(self.given)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.read += 1
        return torch.full((3, 4, 4), index, dtype=torch.uint8), int(self.given[index])


MIXED = np.random.default_rng(7).permutation(np.repeat([0, 1, 2], [50, 10, 2]))


class TestHoldOut:
    def test_takes_the_share_of_each_class_and_at_least_one_image(self) -> None:
        kept, held = hold_out(Labeled(MIXED), 0.13, seed=0)
        assert np.bincount(MIXED[held]).tolist() == [6, 1, 1]  # 6.5, 1.3 and 0.26
        assert sorted([*kept, *held]) == list(range(len(MIXED)))
        assert kept.tolist() == sorted(kept)
        assert held.tolist() == sorted(held)

    def test_depends_on_the_seed_and_nothing_else(self) -> None:
        np.random.seed(1)
        first = hold_out(Labeled(MIXED), 0.2, seed=3)[1]
        np.random.seed(2)
        assert hold_out(Labeled(MIXED.tolist()), 0.2, seed=3)[1].tolist() == first.tolist()
        assert hold_out(Labeled(torch.from_numpy(MIXED)), 0.2, seed=3)[1].tolist() == first.tolist()
        assert hold_out(Labeled(MIXED), 0.2, seed=4)[1].tolist() != first.tolist()

    @pytest.mark.parametrize("labels", [None, ["a"] * len(MIXED), MIXED[:-1]])
    def test_reads_the_images_if_their_labels_are_not_known(self, labels: Any) -> None:
        images = Labeled(MIXED, shown=False)
        if labels is not None:
            images.labels = labels  # means something else
        assert hold_out(images, 0.2, seed=3)[1].tolist() == hold_out(Labeled(MIXED), 0.2, seed=3)[1].tolist()
        assert images.read == len(MIXED)

    @pytest.mark.parametrize(
        ("labels", "share", "message"),
        [
            (
                [0, 0, 1],
                0.5,
                "data.holdout=0.5 needs two training images of each class, and bee has 1 image: add some",
            ),
            (
                [0] * 9 + [1] * 3,
                0.9,
                "data.holdout=0.9 leaves no training images, and bee has 3 images: choose a smaller share",
            ),
        ],
    )
    def test_impossible_shares(self, labels: list[int], share: float, message: str) -> None:
        with pytest.raises(DataError) as caught:
            hold_out(Labeled(labels), share, seed=0)
        assert str(caught.value) == message


def of_tree(root: Path, stage: str = "fit", name: str = "imagefolder", **changes: Any) -> Any:
    data = create_data(name, root=str(root), **{**SMALL, "num_classes": 2, "holdout": 0.25, **changes})
    data.prepare_data()
    data.setup(stage)
    return data


def test_a_folder_tree_is_divided_and_its_validation_set_is_not_needed(jpeg_tree: Path) -> None:
    shutil.rmtree(jpeg_tree / "val")
    data, later = of_tree(jpeg_tree), of_tree(jpeg_tree, "validate")
    assert later.train_dataset is None
    held = [data.val_dataset.file(i) for i in range(len(data.val_dataset))]
    kept = [data.train_file(i) for i in range(len(data.train_dataset))]
    assert [later.val_dataset.file(i) for i in range(4)] == held
    assert sorted([*kept, *held]) == sorted((jpeg_tree / "train").glob("*/*.jpg"))
    assert [file.parent.name for file in held] == ["ant", "ant", "bee", "bee"]
    images, labels = next(iter(data.val_dataloader()))
    assert labels.tolist() == [0, 0, 1, 1] == data.val_dataset.labels.tolist()
    assert torch.equal(images, torch.stack([eval_transform(32, 0.875, "bilinear")(Picture.read(f)) for f in held]))
    seen = [label for _, labels in data.train_dataloader() for label in labels.tolist()]
    assert sorted(seen) == [0] * 6 + [1] * 6


def test_the_rest_is_augmented_unless_that_is_off(jpeg_tree: Path) -> None:
    for file in (jpeg_tree / "train").glob("*/*.jpg"):
        photograph().save(file)
    data = of_tree(jpeg_tree)
    assert not torch.equal(data.train_dataset[0][0], data.train_dataset[0][0])
    plain = of_tree(jpeg_tree, augment={"enabled": False})
    expected = eval_transform(32, 0.875, "bilinear")(Picture.read(plain.train_file(0)))
    assert torch.equal(plain.train_dataset[0][0], expected)


def test_validating_first_gives_the_same_parts(jpeg_tree: Path) -> None:
    data, at_once = of_tree(jpeg_tree, "validate"), of_tree(jpeg_tree)
    data.setup("fit")
    for ours, theirs in ((data.train_dataset, at_once.train_dataset), (data.val_dataset, at_once.val_dataset)):
        assert ours.numbers.tolist() == theirs.numbers.tolist()


@pytest.mark.parametrize("mix", [0, 2])
def test_of_a_pack_every_image_that_is_not_held_out_is_seen_once(jpeg_tree: Path, tmp_path: Path, mix: int) -> None:
    pack(jpeg_tree, tmp_path / "pack", 3000)
    for file in (tmp_path / "pack").glob("val*"):
        file.unlink()  # not needed
    data = of_tree(tmp_path / "pack", name="packed", holdout=0.5, mix_shards=mix)
    order = data.train_order(seed=0, epoch=0).order(0)
    assert sorted(order) == list(range(8))
    ends = data.train_order(seed=0).ends
    assert ends[-1] == 8
    assert len(ends) == len(list((tmp_path / "pack").glob("train-*.tar"))) > 3
    shards = np.searchsorted(ends, np.array(order), side="right")
    assert mix or (np.diff(shards) != 0).sum() == len(set(shards)) - 1, "shard after shard"
    image = data.val_dataset[0][0]
    assert torch.equal(image, data.val_dataset[0][0])
    assert data.train_dataset.images.transform is not data.val_dataset.images.transform


def test_of_imagenet_only_the_training_archive_is_unpacked(archives: Path) -> None:  # noqa: F811
    (archives / "ILSVRC2012_img_val.tar").unlink()
    for stage in ("fit", "validate"):
        data = imagenet(archives, unpack=True, num_classes=3, holdout=0.5, image_size=8)
        data.prepare_data()
        data.setup(stage)
        assert [label for _, label in data.val_dataset] == [0, 1, 2]
    assert not (archives / "val").exists()


class OfPlugin(ImageDataModule):
    """Written before there was ``data.holdout``: no labels, one argument of ``build``."""

    def build(self, split: Split) -> Any:
        assert split == "train"
        return Labeled(MIXED, shown=False)


def test_the_data_set_of_a_plugin_is_divided_too() -> None:
    settings = {"name": "mine", "num_classes": 3, "mean": [0.5] * 3, "std": [0.5] * 3, "image_size": 4}
    data = OfPlugin(DataSettings(**settings, num_workers=0, holdout=0.2))
    data.setup("fit")
    assert data.val_dataset is not None
    assert data.train_dataset is not None
    assert (len(data.val_dataset), len(data.train_dataset), data.train_file(0)) == (13, 49, None)


def test_a_run_validates_on_what_it_held_out_and_is_evaluated_on_it(
    noah: Callable[..., Answer], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    answer = noah("train", *TINY, "head=gap", "data.holdout=0.25", f"hydra.run.dir={run}")
    assert answer.status == 0, answer.err
    results = RunDir(run).results()
    data = create_data(**RunDir(run).config().data.arguments())
    data.setup("fit")
    assert isinstance(data.train_dataset, Subset)
    assert (results.images, len(data.train_dataset)) == (23, 73)  # a quarter of 9 or 10 images of each digit
    with np.load(run / "predictions.npz") as predictions:
        assert predictions["labels"].tolist() == data.val_dataset.labels.tolist()  # type: ignore[union-attr]
    again = noah("evaluate", str(run))
    assert f"({results.correct} of 23)" in again.out, again.err
    assert "of 50)" in noah("evaluate", str(run), "data.holdout=0").out
