"""Fashion-MNIST and other data sets in MNIST's files; those here are written from the definition of the format."""

import gzip
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate
from torchvision.datasets.mnist import FashionMNIST, read_image_file, read_label_file

from conftest import Answer
from noah_lightning.data import create_data
from noah_lightning.data.mnist import read_idx
from noah_lightning.data.subsets import first_of_each_class
from noah_lightning.errors import DataError
from noah_lightning.run_dir import RunDir

TRAIN, VAL = 50, 30  # images
NAMES = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")


def idx(array: np.ndarray) -> bytes:
    """A magic number (0x08 for bytes, and the number of dimensions), the dimensions in big endian, then the data."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Training files compressed, validation files not; each class a bar at another height, in noise."""
    folder = tmp_path / "files"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for prefix, number in (("train", TRAIN), ("t10k", VAL)):
        labels = rng.permutation(np.arange(number) % 10)
        images = rng.integers(0, 60, (number, 28, 28), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[2 * label + 2 : 2 * label + 8] += 180
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            write(folder / f"{prefix}-{name}-ubyte{'.gz' if prefix == 'train' else ''}", idx(array))
    return folder


def write(file: Path, content: bytes) -> None:
    file.write_bytes(gzip.compress(content) if file.suffix == ".gz" else content)


def content_of(file: Path) -> bytes:
    return gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()


def data_of(root: Path, name: str = "fashion_mnist", **settings: Any) -> Any:
    data = create_data(name, root=str(root), **{"image_size": 28, "batch_size": 8, **settings})
    data.setup("fit")
    return data


@pytest.mark.parametrize("compressed", [True, False])
def test_files_are_read_as_torchvision_reads_them(root: Path, tmp_path: Path, compressed: bool) -> None:
    prefix, ending = ("train", ".gz") if compressed else ("t10k", "")
    for name, dimensions, oracle in (("images-idx3", 3, read_image_file), ("labels-idx1", 1, read_label_file)):
        file = root / f"{prefix}-{name}-ubyte{ending}"
        (tmp_path / "plain").write_bytes(content_of(file))
        expected = oracle(str(tmp_path / "plain"))
        assert torch.equal(torch.tensor(read_idx(file, dimensions)), expected.to(torch.uint8))


def test_images_of_their_own_size_are_unchanged(root: Path) -> None:
    data = data_of(root)
    pixels, labels = (
        read_idx(root / f"t10k-{name}-ubyte", n) for name, n in (("images-idx3", 3), ("labels-idx1", 1))
    )
    images, found = (torch.cat(parts) for parts in zip(*data.val_dataloader(), strict=True))
    assert torch.equal(images, torch.tensor(pixels)[:, None].expand(-1, 3, -1, -1))
    assert found.tolist() == labels.tolist()
    assert (len(data.train_dataset), data.train_file(0)) == (TRAIN, None)
    assert data.class_names == FashionMNIST.classes
    normalized = data.on_device.normalize(images)
    torch.testing.assert_close(normalized, images / 127.5 - 1)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_images_are_enlarged_smoothly(root: Path, interpolation: str) -> None:
    image, _ = data_of(root, image_size=96, interpolation=interpolation).val_dataset[3]
    assert (image.dtype, image.shape) == (torch.uint8, (3, 96, 96))
    assert torch.equal(image[0], image[2])
    whole = torch.tensor(read_idx(root / "t10k-images-idx3-ubyte", 3))[3][None, None].float()
    expected = interpolate(whole, (96, 96), mode=interpolation, antialias=True)[0].round().clamp(0, 255)
    # Bicubic overshoots, which bytes cut off after rows and after columns, and floats only at the end.
    difference = (image - expected).abs()
    assert difference.max() <= (1 if interpolation == "bilinear" else 26)
    assert difference.mean() < 0.5


def test_a_part_of_the_images_is_the_first_of_each_class(root: Path) -> None:
    data = data_of(root, train_images=25, val_images=10)
    labels = read_idx(root / "train-labels-idx1-ubyte.gz", 1)
    assert np.bincount(data.train_dataset.labels).tolist() == [3] * 5 + [2] * 5
    assert len(data.val_dataset) == 10 == len(set(data.val_dataset.labels.tolist()))
    first_bag = int(np.flatnonzero(labels == 8)[0])
    pixels = torch.tensor(read_idx(root / "train-images-idx3-ubyte.gz", 3)[first_bag])
    assert any(torch.equal(image[0], pixels) for image, _ in data.train_dataset)
    assert data_of(root, train_images=25, seed=5).train_dataset.labels.equal(data.train_dataset.labels)


def test_first_of_each_class() -> None:
    labels = np.array([2, 0, 0, 0, 1, 2, 0])
    assert [first_of_each_class(labels, number).tolist() for number in (2, 3, 5, 6, 7)] == [
        [1, 4],
        [0, 1, 4],
        [0, 1, 2, 4, 5],
        [0, 1, 2, 3, 4, 5],
        list(range(7)),
    ]


def test_held_out_images(root: Path) -> None:
    for file in root.glob("t10k*"):
        file.unlink()
    data = data_of(root, holdout=0.2)
    assert np.bincount(data.val_dataset.labels).tolist() == [1] * 10
    assert len(data.train_dataset) == 40


def mistake(root: Path, **settings: Any) -> str:
    with pytest.raises(DataError) as caught:
        data_of(root, **settings)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_file_is_named(root: Path, name: str) -> None:
    for file in root.glob(f"{name}-ubyte*"):
        file.unlink()
    assert mistake(root).startswith(
        f"data.root={root} has no {name}-ubyte.gz: it must hold the data set's four files"
    )


def test_a_missing_folder(root: Path) -> None:
    assert mistake(root / "nowhere").startswith(f"data.root={root / 'nowhere'} does not exist: ")
    assert mistake(root / "t10k-images-idx3-ubyte").startswith(
        f"data.root={root}/t10k-images-idx3-ubyte is not a folder"
    )
    with pytest.raises(DataError, match=r"^data\.root is not set"):
        create_data("mnist")


DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "truncated": (lambda content: content[:-100], "bytes of data, not "),
    "longer": (lambda content: content + b"\0", "bytes of data, not "),
    "no header": (lambda content: content[:3], "is not an IDX file of bytes with "),
    "empty": (lambda content: b"", "is not an IDX file of bytes with "),
    "other type": (lambda content: b"\0\0\x0d" + content[3:], "is not an IDX file of bytes with "),
    "no images": (lambda content: content[:4] + bytes(4 * content[3]), "0 bytes of data, not 0"),
    "huge": (lambda content: content[:4] + b"\xff" * (len(content) - 4), "bytes of data, not "),
}


@pytest.mark.parametrize("name", [NAMES[0], NAMES[2]])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_named(root: Path, name: str, damage: str) -> None:
    change, message = DAMAGE[damage]
    file = next(root.glob(f"{name}-ubyte*"))
    write(file, change(content_of(file)))
    found = mistake(root)
    assert found.startswith(f"{file} ")
    assert message in found
    assert found.endswith("copy or download it again")


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content[: len(content) // 2],
        lambda content: content[:-6] + bytes(6),  # the checksum
        lambda content: content[:30] + bytes(30) + content[60:],
    ],
)
def test_a_damaged_archive_is_named(root: Path, change: Callable[[bytes], bytes]) -> None:
    file = root / "train-images-idx3-ubyte.gz"
    file.write_bytes(change(file.read_bytes()))
    found = mistake(root)
    assert found.startswith(f"{file} cannot be read (")
    assert found.endswith("copy or download it again")


def test_files_of_different_data_sets(root: Path) -> None:
    labels = root / "t10k-labels-idx1-ubyte"
    labels.write_bytes(idx(np.zeros(VAL - 1)))
    assert mistake(root).startswith(f"{root}/t10k-images-idx3-ubyte has 30 images and {labels} 29 labels")
    labels.write_bytes(idx(np.full(VAL, 46)))
    advice = "there are 10 classes: for another data set in this format, data=mnist data.num_classes=47"
    assert mistake(root) == f"{labels} has a label of 46, and {advice}"
    assert data_of(root, "mnist", num_classes=47).class_names == [str(number) for number in range(47)]


def test_more_images_than_there_are(root: Path) -> None:
    file = root / "train-images-idx3-ubyte.gz"
    assert mistake(root, train_images=51) == f"data.train_images=51 must be at most 50, the images in {file}"


def test_a_run(noah: Callable[..., Answer], root: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["data=fashion_mnist", f"data.root={root}", "data.image_size=32", "recipe=digits", "recipe.batch_size=10"]
    model = ["model=timm", "model.name=test_resnet", "head=noah", "trainer.max_epochs=2"]
    answer = noah("train", *words, *model, f"hydra.run.dir={run}")
    assert answer.status == 0, answer.err
    assert RunDir(run).results().images == VAL
    assert noah("evaluate", str(run)).status == 0
