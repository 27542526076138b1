"""Data sets in MNIST's files (IDX format), such as Fashion-MNIST, kept in memory as bytes."""

import gzip
import struct
import zlib
from math import prod
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from noah_lightning.config.choices import FashionMNISTSettings, MNISTSettings
from noah_lightning.data.datamodule import ImageDataModule, Split
from noah_lightning.data.image import read_file
from noah_lightning.data.subsets import first_of_each_class
from noah_lightning.data.tree import given_root
from noah_lightning.errors import DataError, one_line

PREFIX = {"train": "train", "val": "t10k"}  # of the file names
UINT8 = 0x08  # type of the elements in an IDX file
COPY_AGAIN = "copy or download it again"
FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


def find_idx(root: Path, name: str) -> Path:
    """The file ``name`` in a folder, or ``name``.gz; raises DataError if there is neither."""
    for file in (root / name, root / f"{name}.gz"):
        if file.exists():
            return file
    has = f"has no {name}.gz" if root.is_dir() else "is not a folder" if root.exists() else "does not exist"
    raise DataError(
        f"data.root={root} {has}: it must hold the data set's four files, as /usr/share/datasets/fashion-mnist does "
        "where Debian's package dataset-fashion-mnist is installed"
    )


def read_idx(file: Path, dimensions: int) -> NDArray[np.uint8]:
    """The read-only bytes of an IDX file, compressed or not, with its shape; raises DataError if it is damaged."""
    try:
        content = read_file(file)
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file} cannot be read ({one_line(error)}): {COPY_AGAIN}") from error
    start = 4 + 4 * dimensions
    if len(content) < start or content[:4] != bytes((0, 0, UINT8, dimensions)):
        raise DataError(f"{file} is not an IDX file of bytes with {dimensions} dimensions: {COPY_AGAIN}")
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    if prod(shape) != len(content) - start or not prod(shape):
        raise DataError(f"{file} has {len(content) - start:,} bytes of data, not {prod(shape):,}: {COPY_AGAIN}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


class GrayImages:
    """Gray images uint8 (N, H, W), each resized to uint8 (3, S, S) when it is needed, and labels int64 (N,)."""

    def __init__(self, images: Tensor, labels: Tensor, classes: list[str], size: int, interpolation: str) -> None:
        self.images, self.labels, self.classes = images, labels, classes
        self.size, self.interpolation = (size, size), interpolation

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.images[index]
        if image.shape != self.size:  # of bytes, as torch resizes photographs
            image = interpolate(image[None, None], self.size, mode=self.interpolation, antialias=True)[0, 0]
        return image.expand(3, -1, -1), int(self.labels[index])


class MNISTDataModule(ImageDataModule):
    """MNIST, or another data set in its files; classes are named by their numbers.

    Files are train-images-idx3-ubyte and train-labels-idx1-ubyte, with t10k in place of train for validation, and may
    end in .gz.
    """

    Settings: type[MNISTSettings] = MNISTSettings
    settings: MNISTSettings

    def __init__(self, settings: MNISTSettings) -> None:
        super().__init__(settings)
        self.root = given_root(settings.root)

    def build(self, split: Split) -> GrayImages:
        """Raises DataError if a file is missing or damaged, or has fewer images than are asked for."""
        of_images, of_labels = (
            find_idx(self.root, f"{PREFIX[split]}-{name}-ubyte") for name in ("images-idx3", "labels-idx1")
        )
        images, labels = read_idx(of_images, 3), read_idx(of_labels, 1).astype(np.int64)
        if len(images) != len(labels):
            found = f"{of_images} has {len(images):,} images and {of_labels} {len(labels):,} labels"
            raise DataError(f"{found}: {COPY_AGAIN}")
        classes, highest = self.names(), int(labels.max())
        if highest >= len(classes):
            raise DataError(
                f"{of_labels} has a label of {highest}, and there are {len(classes)} classes: for another data set "
                f"in this format, data=mnist data.num_classes={highest + 1}"
            )
        wanted = self.settings.train_images if split == "train" else self.settings.val_images
        if (wanted or 0) > len(labels):
            raise DataError(f"data.{split}_images={wanted} must be at most {len(labels)}, the images in {of_images}")
        numbers = first_of_each_class(labels, wanted or len(labels))
        settings = self.settings
        return GrayImages(
            torch.from_numpy(images[numbers]),
            torch.from_numpy(labels[numbers]),
            classes,
            settings.image_size,
            settings.interpolation,
        )

    def names(self) -> list[str]:
        """Names of the classes in label order."""
        return [str(number) for number in range(self.num_classes)]


class FashionMNISTDataModule(MNISTDataModule):
    """Fashion-MNIST: 70,000 gray photographs of clothes, shoes and bags, in 10 classes."""

    Settings = FashionMNISTSettings

    def names(self) -> list[str]:
        return list(FASHION)
