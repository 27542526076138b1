"""ImageNet: the usual mistakes, and unpacking of (tiny) original archives."""

import gzip
import hashlib
import io
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import yaml
from PIL import Image
from torchvision.datasets import imagenet as torchvision_imagenet

from noah_lightning.config.choices import AugmentSettings
from noah_lightning.data import create_data, imagefolder
from noah_lightning.data.imagefolder import ImageNetDataModule
from noah_lightning.errors import ConfigError, DataError

CONFIG = yaml.safe_load((Path(__file__).parents[1] / "conf" / "data" / "imagenet.yaml").read_text())
CONFIG.update(seed=0, batch_size=2, num_workers=0, image_size=16)
# what the recipe says
CONFIG.update(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
CONFIG.update(crop_ratio=0.875, interpolation="bilinear", augment={})
WNIDS = ("n01440764", "n01443537", "n01484850")
VAL_ORDER = (2, 0, 1, 0, 1, 2)  # class of each validation image, in file order
NAMES = {"train": "ILSVRC2012_img_train.tar", "val": "ILSVRC2012_img_val.tar"}
NAMES["devkit"] = "ILSVRC2012_devkit_t12.tar.gz"


def imagenet(root: Path | None, **changes: object) -> ImageNetDataModule:
    data = create_data(**{**CONFIG, "root": None if root is None else str(root), **changes})
    assert isinstance(data, ImageNetDataModule)
    return data


def message_of(root: Path, stage: str = "fit", **changes: object) -> str:
    """The one line that preparing and setting up fail with."""
    data = imagenet(root, **changes)

    def prepare_and_setup() -> None:
        data.prepare_data()
        data.setup(stage)

    with pytest.raises(DataError) as caught:
        prepare_and_setup()
    message = str(caught.value)
    assert "\n" not in message
    return message


def jpeg(brightness: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 20), (brightness,) * 3).save(buffer, "JPEG")
    return buffer.getvalue()


def tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def class_tar(label: int) -> bytes:
    return tar({f"{WNIDS[label]}_{i}.JPEG": jpeg(50 * label) for i in range(2)})


def devkit_files(folder: Path) -> dict[str, bytes]:
    """meta.mat with the three classes and one parent, which is no class; and the labels of the val images."""
    fields = ["ILSVRC2012_ID", "WNID", "words", "gloss", "num_children"]
    synsets = np.zeros(4, dtype=[(name, object) for name in fields])
    for label, wnid in enumerate(WNIDS):
        synsets[label] = (label + 1, wnid, f"fish {label}, swimmer {label}", "swims", 0)
    synsets[3] = (4, "n00000000", "animal", "lives", 3)
    scipy.io.savemat(folder / "meta.mat", {"synsets": synsets})
    truth = "".join(f"{label + 1}\n" for label in VAL_ORDER)
    return {
        "ILSVRC2012_devkit_t12/data/meta.mat": (folder / "meta.mat").read_bytes(),
        "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": truth.encode(),
    }


@pytest.fixture
def archives(tmp_path: Path, of_three_classes: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root with the three original archives of a three-class ImageNet."""
    root = tmp_path / "imagenet"
    root.mkdir()
    train = {f"{wnid}.tar": class_tar(label) for label, wnid in enumerate(WNIDS)}
    val = {f"ILSVRC2012_val_{i:08d}.JPEG": jpeg(50 * label) for i, label in enumerate(VAL_ORDER, 1)}
    (root / NAMES["train"]).write_bytes(tar(train))
    (root / NAMES["val"]).write_bytes(tar(val))
    (root / NAMES["devkit"]).write_bytes(gzip.compress(tar(devkit_files(tmp_path))))
    for part, name in NAMES.items():
        assert torchvision_imagenet.ARCHIVE_META[part][0] == name
        md5 = hashlib.md5((root / name).read_bytes()).hexdigest()
        monkeypatch.setitem(torchvision_imagenet.ARCHIVE_META, part, (name, md5))
    return root


@pytest.fixture
def of_three_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imagefolder, "NUM_CLASSES", len(WNIDS))


def make_folders(root: Path, names: list[str]) -> Path:
    for split in ("train", "val"):
        for name in names:
            (root / split / name).mkdir(parents=True)
    return root


def test_the_recipes_settings_arrive(tmp_path: Path) -> None:
    data = imagenet(tmp_path, augment={"erasing": 0.25, "repeats": 3}, interpolation="bicubic", crop_ratio=0.9)
    assert data.augment == AugmentSettings(erasing=0.25, repeats=3)
    assert (data.settings.interpolation, data.settings.crop_ratio) == ("bicubic", 0.9)


class TestUnpack:
    def test_from_archives_to_batches(self, archives: Path) -> None:
        data = imagenet(archives, unpack=True, num_classes=3)
        data.prepare_data()
        data.setup("fit")
        assert data.class_names == list(WNIDS)
        for dataset in (data.train_dataset, data.val_dataset):
            assert dataset is not None
            assert len(dataset) == 6
            for i in range(6):
                image, label = dataset[i]
                assert abs(int(image[0, 8, 8]) - 50 * label) <= 2, "an image's brightness tells its class"

    def test_twice_is_harmless_and_needs_no_archives(self, archives: Path) -> None:
        imagenet(archives, unpack=True).prepare_data()
        for name in NAMES.values():
            (archives / name).unlink()
        imagenet(archives, unpack=True).prepare_data()

    def test_only_the_missing_split_is_made(self, archives: Path) -> None:
        imagenet(archives, unpack=True).prepare_data()
        shutil.rmtree(archives / "val")
        (archives / NAMES["train"]).unlink()
        imagenet(archives, unpack=True).prepare_data()
        assert sorted(path.name for path in (archives / "val").iterdir()) == list(WNIDS)

    def test_not_unless_asked(self, archives: Path) -> None:
        message = message_of(archives, num_classes=3)
        assert f"holds {NAMES['train']}: add data.unpack=true" in message
        assert not (archives / "train").exists()

    def test_validation_asks_for_val_only(self, archives: Path) -> None:
        message = message_of(archives, "validate", num_classes=3)
        assert f"has no val/ but holds {NAMES['val']}: add data.unpack=true" in message

    @pytest.mark.parametrize("part", NAMES)
    def test_missing_archive(self, archives: Path, part: str) -> None:
        (archives / NAMES[part]).unlink()
        message = message_of(archives, unpack=True)
        assert f"data.unpack=true needs {NAMES[part]} in {archives}" in message
        assert not (archives / "train").exists(), "found out before anything is unpacked"

    @pytest.mark.parametrize("part", NAMES)
    def test_damaged_archive(self, archives: Path, part: str) -> None:
        with open(archives / NAMES[part], "r+b") as file:
            file.truncate(700)
        message = message_of(archives, unpack=True)
        assert NAMES[part] in message
        assert "corrupted" in message

    def test_archive_that_breaks_off_while_unpacking(self, archives: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        archive = archives / NAMES["train"]
        archive.write_bytes(archive.read_bytes()[:2000])
        md5 = hashlib.md5(archive.read_bytes()).hexdigest()
        monkeypatch.setitem(torchvision_imagenet.ARCHIVE_META, "train", (NAMES["train"], md5))
        message = message_of(archives, unpack=True)
        assert f"unpacking {NAMES['train']} failed" in message
        assert f"Delete {archives / 'train'} before trying again" in message

    def test_root_missing(self, tmp_path: Path) -> None:
        assert "does not exist" in message_of(tmp_path / "nowhere", unpack=True)

    @pytest.mark.parametrize("unpack", ["no", 1, None])
    def test_flag_must_be_true_or_false(self, tmp_path: Path, unpack: object) -> None:
        with pytest.raises(ConfigError, match=r"^data.unpack=.* must be true or false$"):
            imagenet(tmp_path, unpack=unpack)


class TestMistakes:
    def test_root_not_set(self) -> None:
        with pytest.raises(DataError) as caught:
            imagenet(None)
        message = str(caught.value)
        assert "data.root=/path/to/" in message
        assert "experiment=demo" in message
        assert "\n" not in message

    def test_nothing_there(self, tmp_path: Path) -> None:
        assert "has no train/ folder" in message_of(tmp_path)

    @pytest.mark.usefixtures("of_three_classes")
    def test_flat_validation_folder(self, tmp_path: Path) -> None:
        make_folders(tmp_path, list(WNIDS))
        shutil.rmtree(tmp_path / "val")
        (tmp_path / "val").mkdir()
        for i in range(5):
            (tmp_path / "val" / f"ILSVRC2012_val_{i:08d}.JPEG").touch()
        message = message_of(tmp_path)
        assert f"{tmp_path / 'val'} holds 5 files straight in val/, not sorted by class" in message
        assert f"delete {tmp_path / 'val'}" in message, "else torchvision takes it for unpacked"
        assert NAMES["val"] in message
        assert NAMES["devkit"] in message
        assert "data.unpack=true" in message

    def test_part_of_imagenet(self, tmp_path: Path) -> None:
        message = message_of(make_folders(tmp_path, list(WNIDS)))
        assert f"{tmp_path / 'train'} has 3 class folders, ImageNet has 1000" in message
        assert "data=imagefolder" in message
        assert "data.unpack=true" in message

    def test_another_data_set(self, tmp_path: Path) -> None:
        message = message_of(make_folders(tmp_path, ["cat", "dog"]))
        assert "has 2 class folders, ImageNet has 1000" in message
        assert message.endswith("this looks like another data set, choose data=imagefolder")

    def test_other_class_count_asked_for(self, archives: Path) -> None:
        assert "set data.num_classes=3" in message_of(archives, unpack=True, num_classes=1000)

    @pytest.mark.parametrize(("split", "name"), [("train", "n00000999.tar"), ("val", "ILSVRC2012_val_00000001.JPEG")])
    @pytest.mark.usefixtures("of_three_classes")
    def test_unpacking_that_stopped_half_way(self, tmp_path: Path, split: str, name: str) -> None:
        make_folders(tmp_path, list(WNIDS))
        (tmp_path / split / name).touch()
        message = message_of(tmp_path)
        assert "was interrupted" in message
        assert name in message
        assert f"delete {tmp_path / split}" in message
