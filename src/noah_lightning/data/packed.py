"""Data set of images in the shards written by ``noah pack``."""

import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from noah_lightning.config.choices import PackedSettings
from noah_lightning.data.datamodule import ImageDataModule, Split
from noah_lightning.data.image import Picture
from noah_lightning.data.imagefolder import NUM_CLASSES, ImageFolderDataModule, are_wnids
from noah_lightning.data.pack_format import COPY_AGAIN, read_facts, read_index, shard_name
from noah_lightning.data.samplers import ShardShuffle
from noah_lightning.data.subsets import Subset
from noah_lightning.data.transforms import Transform
from noah_lightning.errors import DataError

OPEN_SHARDS = 32  # per process; each takes a file descriptor


class PackedImages:
    """The images of one split of a pack in packed order, each transformed to uint8 (3, S, S).

    At the first image of a shard the system is advised to read the whole shard in the background
    (``posix_fadvise``): one large sequential read, after which images come from the page cache, which all processes
    of the machine share. A file system that ignores the advice reads image by image.

    Raises DataError if ``root`` is not a complete pack, or one of its files is missing or damaged.
    """

    def __init__(self, root: Path, split: str, transform: Transform, exif_orientation: bool | None = None) -> None:
        self.root, self.split = root, split
        self.classes = [str(name) for name in read_facts(root)["classes"]]
        self.index = read_index(root, split)
        self.transform = transform
        of_imagenet = len(self.classes) == NUM_CLASSES and are_wnids(self.classes)
        self.upright = not of_imagenet if exif_orientation is None else exif_orientation
        self._open: dict[Path, int] = {}  # file descriptor of each open shard, the most recently used last

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """(image, label); raises DataError if the checksum does not match."""
        file = self.file(index)
        try:
            data = os.pread(self._handle(file), int(self.index.sizes[index]), int(self.index.offsets[index]))
        except OSError as error:
            raise DataError(f"{file} cannot be read ({error.strerror}): {COPY_AGAIN}") from error
        if zlib.crc32(data) != self.index.checksums[index]:
            raise DataError(f"{file} is damaged (image {index} of {self.split}): {COPY_AGAIN}")
        picture = Picture(data, f"image {index} of {self.split} in {file}", self.upright)
        return self.transform(picture), int(self.index.labels[index])

    @property
    def labels(self) -> NDArray[np.int32]:
        return self.index.labels

    def file(self, index: int) -> Path:
        """Path of the shard that holds an image."""
        return self.root / shard_name(self.split, int(self.index.ends.searchsorted(index, side="right")))

    def _handle(self, shard: Path) -> int:
        handle = self._open.pop(shard, None)
        if handle is None:
            handle = os.open(shard, os.O_RDONLY)
            if hasattr(os, "posix_fadvise"):  # not on macOS
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_WILLNEED)
            if len(self._open) >= OPEN_SHARDS:
                os.close(self._open.pop(next(iter(self._open))))
        self._open[shard] = handle
        return handle

    def __getstate__(self) -> dict[str, Any]:
        """State for DataLoader workers that are not forked: without file descriptors."""
        return {**vars(self), "_open": {}}

    def __del__(self) -> None:
        for handle in vars(self).get("_open", {}).values():
            os.close(handle)


class PackedDataModule(ImageFolderDataModule):
    """Images in shards, for storage that is slow with many small files.

    Training reads shard by shard, see :class:`~noah_lightning.data.samplers.ShardShuffle`, and mixes images over
    ``mix_shards`` shards, about as many of which each process keeps in memory. Validation has the order of the folder
    tree, of which rank r of W reads every W-th image.
    """

    Settings = PackedSettings
    settings: PackedSettings

    def setup(self, stage: str) -> None:
        """Read the index of the pack; raises DataError if it is damaged, or its classes are not ``num_classes``."""
        ImageDataModule.setup(self, stage)  # there is no folder tree to check

    def build(self, split: Split) -> PackedImages:
        return PackedImages(self.root, split, self.transform(split), self.settings.exif_orientation)

    def train_order(self, **share: int) -> ShardShuffle:
        images = self.train_dataset
        if isinstance(images, Subset):
            ends = images.numbers.searchsorted(images.images.index.ends)  # of the images that are not held out
        else:
            assert isinstance(images, PackedImages), "call setup('fit') first"
            ends = images.index.ends
        return ShardShuffle(ends, mix=self.settings.mix_shards, repeats=self.augment.repeats, **share)
