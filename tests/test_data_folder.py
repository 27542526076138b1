"""Photographs in folders: the transforms, the tree's mistakes, broken files."""

import traceback
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from sklearn.datasets import load_sample_image
from timm.data.transforms_factory import transforms_imagenet_eval
from torchvision import transforms as v1

from noah_lightning.data import create_data
from noah_lightning.data.image import Picture
from noah_lightning.data.imagefolder import ImageFolderDataModule
from noah_lightning.data.transforms import eval_transform
from noah_lightning.data.tree import count_classes
from noah_lightning.errors import ConfigError, DataError

CONFIG = yaml.safe_load((Path(__file__).parents[1] / "conf" / "data" / "imagefolder.yaml").read_text())
CONFIG.update(seed=0, batch_size=2, num_workers=0, num_classes=2, image_size=32)
# what the recipe says, usually
CONFIG.update(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
CONFIG.update(crop_ratio=0.875, interpolation="bilinear", augment={})
CLASSES = ("cat", "dog")


def photograph(width: int = 50, height: int = 40, seed: int = 0) -> Image.Image:
    """Coloured noise over a slope, so that each geometric step leaves its mark on the pixels."""
    pixels = np.random.default_rng(seed).integers(0, 128, (height, width, 3))
    pixels += np.linspace(0, 127, width).astype(int)[None, :, None]
    return Image.fromarray(pixels.astype(np.uint8))


def make_tree(root: Path, classes: tuple[str, ...] = CLASSES, per_class: int = 2) -> Path:
    for split in ("train", "val"):
        for label, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(per_class):
                photograph(seed=10 * label + i).save(folder / f"{i}.jpg")
    return root


def folder_data(root: Path | str | None, **changes: object) -> ImageFolderDataModule:
    data = create_data(**{**CONFIG, "root": None if root is None else str(root), **changes})
    assert isinstance(data, ImageFolderDataModule)
    return data


def message_of(root: Path, stage: str = "fit", **changes: object) -> str:
    """The one line that setup fails with."""
    with pytest.raises(DataError) as caught:
        folder_data(root, **changes).setup(stage)
    message = str(caught.value)
    assert "\n" not in message
    return message


def as_picture(image: Image.Image) -> Picture:
    """As a file that keeps every bit."""
    stream = BytesIO()
    image.save(stream, "PPM")  # the fastest to write and read
    return Picture(stream.getvalue(), "a photograph")


def assert_near(result: torch.Tensor, expected: torch.Tensor) -> None:
    """As torch and PIL scale: they round their weights differently, which makes a level here and there."""
    difference = (result.int() - expected.int()).abs()
    assert difference.max() <= 16  # bicubic, at a sharp edge
    assert difference.float().mean() < 0.3


SHAPES = [(50, 40), (300, 200), (200, 333), (20, 90), (224, 224)]


class TestTransforms:
    @pytest.mark.parametrize(("width", "height"), SHAPES)
    @pytest.mark.parametrize(("image_size", "crop_ratio", "resized"), [(224, 0.875, 256), (64, 0.95, 67)])
    def test_eval_equals_the_classic_pipeline(
        self, width: int, height: int, image_size: int, crop_ratio: float, resized: int
    ) -> None:
        classic = v1.Compose([v1.Resize(resized), v1.CenterCrop(image_size), v1.PILToTensor()])
        image = photograph(width, height)
        result = eval_transform(image_size, crop_ratio, "bilinear")(as_picture(image))
        assert result.dtype == torch.uint8
        assert type(result) is torch.Tensor
        assert result.shape == (3, image_size, image_size)
        assert_near(result, classic(image))

    @pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
    @pytest.mark.parametrize(("crop_ratio", "resized"), [(0.875, 256), (0.9, 248)])
    @pytest.mark.parametrize("name", ["china.jpg", "flower.jpg"])
    def test_eval_equals_timms(self, name: str, crop_ratio: float, resized: int, interpolation: str) -> None:
        image = Image.fromarray(load_sample_image(name))
        result = eval_transform(224, crop_ratio, interpolation)(as_picture(image))
        timms = transforms_imagenet_eval(224, crop_pct=crop_ratio, interpolation=interpolation, normalize=False)
        assert_near(result, timms(image))
        # and by hand: the shorter side of 427 x 640 pixels scaled, the middle cut out
        kind = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[interpolation]
        pixels = np.asarray(image.resize((int(resized * 640 / 427), resized), kind))
        top, left = (round((side - 224) / 2) for side in pixels.shape[:2])
        assert_near(result.permute(1, 2, 0), torch.from_numpy(pixels[top : top + 224, left : left + 224].copy()))


class TestDataModule:
    def test_batches(self, tmp_path: Path) -> None:
        data = folder_data(make_tree(tmp_path))
        data.setup("fit")
        assert data.class_names == ["cat", "dog"]
        images, labels = next(iter(data.train_dataloader()))
        assert images.shape == (2, 3, 32, 32)
        assert images.dtype == torch.uint8
        assert labels.dtype == torch.int64

    @pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
    def test_val_images_and_labels(self, tmp_path: Path, interpolation: str) -> None:
        data = folder_data(make_tree(tmp_path), crop_ratio=0.5, interpolation=interpolation)
        data.setup("validate")
        assert data.train_dataset is None
        images, labels = (torch.cat(parts) for parts in zip(*data.val_dataloader(), strict=True))
        assert labels.tolist() == [0, 0, 1, 1]
        files = [tmp_path / "val" / name / f"{i}.jpg" for name in CLASSES for i in range(2)]
        expected = torch.stack([eval_transform(32, 0.5, interpolation)(Picture.read(file)) for file in files])
        assert torch.equal(images, expected)

    def test_val_images_are_those_of_pil(self, tmp_path: Path) -> None:
        """From the file on: PIL decodes, scales and crops, as torchvision's reference does."""
        make_tree(tmp_path)
        for label, name in enumerate(("china.jpg", "flower.jpg")):
            Image.fromarray(load_sample_image(name)).save(tmp_path / "val" / CLASSES[label] / "0.jpg", quality=95)
        data = folder_data(tmp_path, image_size=224, crop_ratio=0.875)
        data.setup("validate")
        assert data.val_dataset is not None
        classic = v1.Compose([v1.Resize(256), v1.CenterCrop(224), v1.PILToTensor()])
        for label in (0, 1):
            with Image.open(tmp_path / "val" / CLASSES[label] / "0.jpg") as image:
                assert_near(data.val_dataset[2 * label][0], classic(image))

    def test_train_images_are_augmented(self, tmp_path: Path) -> None:
        data = folder_data(make_tree(tmp_path))
        data.setup("fit")
        assert data.train_dataset is not None
        assert data.val_dataset is not None
        assert not torch.equal(data.train_dataset[0][0], data.train_dataset[0][0])
        assert torch.equal(data.val_dataset[0][0], data.val_dataset[0][0])

    def test_home_is_expanded(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        make_tree(tmp_path / "pets")
        assert folder_data("~/pets").root == tmp_path / "pets"
        assert count_classes("~/pets") == 2

    @pytest.mark.parametrize("crop_ratio", [0, 1.5, "big"])
    def test_crop_ratio_out_of_range(self, tmp_path: Path, crop_ratio: object) -> None:
        with pytest.raises(ConfigError, match=r"^data.crop_ratio=.* must be a number above 0 and at most 1$"):
            folder_data(tmp_path, crop_ratio=crop_ratio)

    @pytest.mark.parametrize("interpolation", ["random", "lanczos", None, ["bicubic"]])
    def test_interpolation_that_there_is_not(self, tmp_path: Path, interpolation: object) -> None:
        with pytest.raises(ConfigError) as caught:
            folder_data(tmp_path, interpolation=interpolation)
        assert str(caught.value).startswith("data.interpolation=")
        assert str(caught.value).endswith(" must be one of bilinear, bicubic")

    def test_validation_needs_no_train_folder(self, tmp_path: Path) -> None:
        make_tree(tmp_path)
        (tmp_path / "train").rename(tmp_path / "elsewhere")
        data = folder_data(tmp_path)
        data.setup("validate")
        assert data.class_names == ["cat", "dog"]


class TestCountClasses:
    def test_counts_visible_folders(self, tmp_path: Path) -> None:
        make_tree(tmp_path, ("a", "b", "c"), per_class=1)
        (tmp_path / "train" / ".ipynb_checkpoints").mkdir()
        (tmp_path / "train" / "README.txt").touch()
        assert count_classes(str(tmp_path)) == 3
        data = folder_data(tmp_path, num_classes=3)
        data.setup("fit")
        assert data.class_names == ["a", "b", "c"], "the loaders count as count_classes does"

    @pytest.mark.parametrize("root", [None, ""])
    def test_root_not_set(self, root: str | None) -> None:
        with pytest.raises(DataError, match=r"data.root=/path/to/.*experiment=demo"):
            count_classes(root)

    def test_root_missing(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="does not exist"):
            count_classes(str(tmp_path / "nowhere"))


class TestMistakes:
    def test_root_not_set(self) -> None:
        with pytest.raises(DataError) as caught:
            folder_data(None)
        message = str(caught.value)
        assert "data.root=/path/to/" in message
        assert "experiment=demo" in message
        assert "\n" not in message

    def test_root_missing(self, tmp_path: Path) -> None:
        message = message_of(tmp_path / "nowhere")
        assert message.startswith(f"data.root={tmp_path}/nowhere does not exist")

    def test_root_is_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "data.zip").touch()
        assert "data.zip is not a folder" in message_of(tmp_path / "data.zip")

    @pytest.mark.parametrize("split", ["train", "val"])
    def test_no_split_folder(self, tmp_path: Path, split: str) -> None:
        make_tree(tmp_path)
        (tmp_path / split).rename(tmp_path / "elsewhere")
        message = message_of(tmp_path)
        assert f"data.root={tmp_path} has no {split}/ folder" in message
        assert "train/<class>/ and val/<class>/" in message

    @pytest.mark.parametrize("split", ["train", "val"])
    def test_flat_split_folder(self, tmp_path: Path, split: str) -> None:
        make_tree(tmp_path)
        (tmp_path / split).rename(tmp_path / "elsewhere")
        (tmp_path / split).mkdir()
        for i in range(3):
            photograph().save(tmp_path / split / f"{i}.jpg")
        message = message_of(tmp_path)
        assert f"{tmp_path / split} holds 3 files and no class folders" in message
        assert f"{split}/<class>/" in message

    def test_empty_split_folder(self, tmp_path: Path) -> None:
        make_tree(tmp_path)
        (tmp_path / "val").rename(tmp_path / "elsewhere")
        (tmp_path / "val").mkdir()
        assert message_of(tmp_path).startswith(f"{tmp_path / 'val'} is empty")

    def test_empty_classes_are_named(self, tmp_path: Path) -> None:
        make_tree(tmp_path)
        for name in ("eel", "fox"):
            (tmp_path / "train" / name).mkdir()
            (tmp_path / "val" / name).mkdir()
            (tmp_path / "train" / name / "notes.txt").touch()
        message = message_of(tmp_path, num_classes=4)
        assert f"{tmp_path / 'train'} has classes without images, fill or remove them: eel, fox" in message

    def test_classes_that_differ_are_named(self, tmp_path: Path) -> None:
        make_tree(tmp_path)
        (tmp_path / "val" / "dog").rename(tmp_path / "val" / "hog")
        for i in range(5):
            (tmp_path / "train" / f"zebra{i}").mkdir()
        message = message_of(tmp_path)
        assert "6 only in train/ (dog, zebra0, zebra1, …)" in message
        assert "1 only in val/ (hog)" in message

    def test_class_count_that_differs(self, tmp_path: Path) -> None:
        assert "set data.num_classes=2" in message_of(make_tree(tmp_path), num_classes=5)


def break_file(path: Path, how: str) -> None:
    if how == "text":
        path.write_text("<html>404 not found</html>")
    elif how == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif how == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()


class TestBrokenFiles:
    @pytest.mark.parametrize(
        ("how", "num_workers"), [("text", 0), ("truncated", 0), ("empty", 0), ("gone", 0), ("truncated", 1)]
    )
    def test_one_line_names_the_file(
        self, tmp_path: Path, how: str, num_workers: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.2)  # torch would wait for 5 s
        make_tree(tmp_path)
        data = folder_data(tmp_path, num_workers=num_workers)
        data.setup("validate")
        broken = tmp_path / "val" / "dog" / "1.jpg"
        break_file(broken, how)
        with pytest.raises(DataError) as caught:
            list(data.val_dataloader())
        message = str(caught.value)
        assert "\n" not in message
        assert message.startswith(f"{broken} cannot be read as an image, replace or remove it (")

    def test_error_keeps_the_last_line_of_a_traceback(self) -> None:
        """As torch hands it over: ``error_type("Caught DataError in ...\\nOriginal Traceback ...")``."""
        try:
            raise DataError("a.jpg: broken") from OSError("first cause")
        except DataError as error:
            traceback_text = "".join(traceback.format_exception(error))
        assert len(traceback_text.splitlines()) > 4
        assert str(DataError(f"Caught DataError.\nOriginal {traceback_text}")) == "a.jpg: broken"
        assert str(DataError("a.jpg: broken")) == "a.jpg: broken"
