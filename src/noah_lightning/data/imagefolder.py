"""Folder trees of images, root/train/<class>/ and root/val/<class>/, and ImageNet as one of them."""

import re
import tarfile
from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torchvision.datasets import ImageNet, imagenet

from noah_lightning.config.choices import ImageFolderSettings, ImageNetSettings
from noah_lightning.data.datamodule import ImageDataModule, LabeledImages, Split
from noah_lightning.data.image import Picture
from noah_lightning.data.index import find_images
from noah_lightning.data.transforms import Transform, eval_transform, train_transform
from noah_lightning.data.tree import class_folders, given_root, list_split, require_root, require_same_classes
from noah_lightning.errors import DataError, count, one_line

NUM_CLASSES = 1000  # of ImageNet


class FolderImages:
    """The images of root/split/<class>/, without hidden folders, each transformed to uint8 (3, S, S).

    Raises DataError if there is no such folder, or a class has no images.
    """

    def __init__(self, root: Path, split: str, transform: Transform, exif_orientation: bool = True) -> None:
        self.folder = root / split
        self.classes = class_folders(root, split)
        self.index = find_images(self.folder, self.classes)
        self.transform, self.upright = transform, exif_orientation

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """(image, label); raises DataError if the file is not an image."""
        return self.transform(Picture.read(self.file(index), self.upright)), int(self.index.labels[index])

    @property
    def labels(self) -> NDArray[np.int32]:
        return self.index.labels

    def file(self, index: int) -> Path:
        """Path of the image."""
        return self.folder / self.index.path(index)


class ImageFolderDataModule(ImageDataModule):
    """Images in a folder tree; raises DataError if ``root`` is not set."""

    Settings: type[ImageFolderSettings] = ImageFolderSettings
    settings: ImageFolderSettings

    def __init__(self, settings: ImageFolderSettings) -> None:
        super().__init__(settings, settings.augment, settings.max_unreadable)
        self.root = given_root(settings.root)

    def setup(self, stage: str) -> None:
        """Check the folder tree and list its images; raises DataError for any mistake in it."""
        # Only training reads train/; a machine that only evaluates does not need it. With holdout nothing reads val/.
        if not self.settings.holdout and (stage == "fit" or (self.root / "train").is_dir()):
            require_same_classes(self.root)
        super().setup(stage)

    def build(self, split: Split) -> LabeledImages:
        return FolderImages(self.root, split, self.transform(split), self.settings.exif_orientation)

    def without_augmentation(self, images: Any) -> LabeledImages:
        plain = copy(images)  # with the same index
        plain.transform = self.transform("val")
        return plain

    def transform(self, split: Split) -> Transform:
        """The transform from a picture to uint8 (3, S, S)."""
        if split == "train" and self.augment.enabled:
            return train_transform(self.image_size, self.augment, self.mean)
        return eval_transform(self.image_size, self.settings.crop_ratio, self.settings.interpolation)


class ImageNetDataModule(ImageFolderDataModule):
    """ILSVRC2012: 1000 classes, root/train/<wnid>/ and root/val/<wnid>/.

    With ``unpack`` a missing train/ or val/ is extracted from the archives in ``root``, which takes twice their disk
    space.
    """

    Settings = ImageNetSettings
    settings: ImageNetSettings

    def prepare_data(self) -> None:
        """With ``unpack``, extract what is missing; Lightning calls this in one process per machine."""
        if self.settings.unpack:
            unpack_archives(self.root, self._splits)

    @property
    def _splits(self) -> tuple[Split, ...]:
        return ("train",) if self.settings.holdout else ("train", "val")

    def setup(self, stage: str) -> None:
        """Check for common mistakes with ImageNet, then set up as any folder tree."""
        for split in self._splits:
            if (self.root / split).is_dir():
                _require_imagenet(self.root, split)
            elif (self.root / _archive(split)).is_file() and (stage == "fit" or split == self._splits[-1]):
                raise DataError(f"{self.root} has no {split}/ but holds {_archive(split)}: add data.unpack=true")
        super().setup(stage)


def unpack_archives(root: Path, wanted: Sequence[Split] = ("train", "val")) -> None:
    """Extract root/train/<wnid>/ and root/val/<wnid>/ from the archives in ``root``; existing folders are kept.

    Raises DataError if an archive is missing or damaged, or the disk is full.
    """
    require_root(root)
    splits = [split for split in wanted if not (root / split).is_dir()]
    if not splits:
        return
    # Check for all archives first: extracting train/ takes an hour.
    missing = [_archive(part) for part in (*splits, "devkit") if not (root / _archive(part)).is_file()]
    if missing:
        raise DataError(f"data.unpack=true needs {', '.join(missing)} in {root}: download from image-net.org")
    for split in splits:
        try:
            ImageNet(str(root), split=split)
        except (RuntimeError, OSError, EOFError, tarfile.TarError) as error:
            # The next time, a partly extracted folder would be taken for a complete one.
            advice = f" Delete {root / split} before trying again." if (root / split).is_dir() else ""
            raise DataError(f"unpacking {_archive(split)} failed: {one_line(error)}{advice}") from error


def _archive(part: str) -> str:
    return imagenet.ARCHIVE_META[part][0]


def are_wnids(classes: Sequence[str]) -> bool:
    """Whether the classes are named as those of ImageNet."""
    return all(re.fullmatch(r"n\d{8}", name) for name in classes)


def _require_imagenet(root: Path, split: str) -> None:
    """Raise DataError unless root/split has 1000 class folders and no leftovers of unpacking."""
    folder = root / split
    folders, files = list_split(root, split)
    leftovers = [name for name in files if name.lower().endswith((".tar", ".jpeg"))]
    how = f"delete {folder}, put {_archive(split)} and {_archive('devkit')} in {root} and add data.unpack=true"
    if leftovers and not folders:
        raise DataError(
            f"{folder} holds {count(len(leftovers), 'file')} straight in {split}/, not sorted by class: {how}"
        )
    if leftovers:
        raise DataError(
            f"{folder} holds {count(len(leftovers), 'file')} besides its class folders, such as {leftovers[0]}: "
            f"unpacking was interrupted, {how}"
        )
    if folders and len(folders) != NUM_CLASSES:
        if are_wnids(folders):
            advice = f"for a part of ImageNet choose data=imagefolder, else {how}"
        else:
            advice = "this looks like another data set, choose data=imagefolder"
        raise DataError(f"{folder} has {len(folders)} class folders, ImageNet has {NUM_CLASSES}: {advice}")
