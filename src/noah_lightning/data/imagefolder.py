"""Image folder data set: root/train/<class>/ and root/val/<class>/."""

from pathlib import Path

from torch import Tensor

from noah_lightning.config.choices import ImageFolderSettings
from noah_lightning.data.datamodule import ImageDataModule, LabeledImages, Split
from noah_lightning.data.image import Picture
from noah_lightning.data.index import find_images
from noah_lightning.data.transforms import Transform, eval_transform, train_transform
from noah_lightning.data.tree import class_folders, given_root, require_same_classes


class FolderImages:
    """The images of root/split/<class>/, without hidden folders.

    Args:
        root: folder of the data set.
        split: name of the split.
        transform: maps a picture to uint8 (3, S, S).

    Raises:
        DataError: no such folder, or a class without images.
    """

    def __init__(self, root: Path, split: str, transform: Transform) -> None:
        self.folder = root / split
        self.classes = class_folders(root, split)
        self.index = find_images(self.folder, self.classes)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """(uint8 (3, S, S), label); raises DataError if the file is not an image."""
        return self.transform(Picture.read(self.file(index))), int(self.index.labels[index])

    def file(self, index: int) -> Path:
        """Path of an image."""
        return self.folder / self.index.path(index)


class ImageFolderDataModule(ImageDataModule):
    """Images in a folder tree; raises DataError if ``root`` is not set."""

    Settings: type[ImageFolderSettings] = ImageFolderSettings

    def __init__(self, settings: ImageFolderSettings) -> None:
        super().__init__(settings, settings.augment, settings.max_unreadable)
        self.root = given_root(settings.root)
        self.crop_ratio, self.interpolation = settings.crop_ratio, settings.interpolation

    def setup(self, stage: str) -> None:
        """Check the folder tree and list its images.

        Raises:
            DataError: a missing folder, images outside class folders, an empty class, classes of train/ and
                val/ that differ, or a class count other than ``num_classes``.
        """
        # Only training reads train/; a machine that only evaluates does not need it.
        if stage == "fit" or (self.root / "train").is_dir():
            require_same_classes(self.root)
        super().setup(stage)

    def train_file(self, number: int) -> Path:
        assert isinstance(self.train_dataset, FolderImages), "call setup('fit') first"
        return self.train_dataset.file(number)

    def build(self, split: Split) -> LabeledImages:
        if split == "train":
            transform = train_transform(self.image_size, self.augment, self.mean)
        else:
            transform = eval_transform(self.image_size, self.crop_ratio, self.interpolation)
        return FolderImages(self.root, split, transform)
