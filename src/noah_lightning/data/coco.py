"""MS-COCO as a multi-label data set: ROOT/annotations/instances_*.json and the folders of their images."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from noah_lightning.config.choices import CocoSettings
from noah_lightning.data.datamodule import ImageDataModule, LabeledImages, Split
from noah_lightning.data.image import Picture
from noah_lightning.data.transforms import Transform, eval_transform, train_transform
from noah_lightning.data.tree import given_root
from noah_lightning.errors import DataError, count, name_first, one_line

WANTED = "it must hold annotations/instances_SPLIT.json and the images in SPLIT/"


class CocoImages:
    """The annotated images of root/``split``/ by file name, each transformed to uint8 (3, S, S).

    The label is the set of categories that an image has annotations of, crowds included: float32 (K,), in the order
    of the category ids. Images without annotations are left out, as in the literature on multi-label COCO, which has
    82,081 training and 40,137 validation images of 2014.

    Raises DataError for a missing or invalid annotation file, or missing images.
    """

    def __init__(self, root: Path, split: str, transform: Transform, exif_orientation: bool = True) -> None:
        self.folder, self.transform, self.upright = root / split, transform, exif_orientation
        path = root / "annotations" / f"instances_{split}.json"
        content = _read(root, path)
        try:
            self.classes, self.names, self.labels = parse_instances(content)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else one_line(error)
            raise DataError(f"{path} is not a file of COCO's instance annotations: {reason}") from error
        _require_images(self.folder, self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """(image, label); raises DataError if the file is not an image."""
        label = torch.from_numpy(self.labels[index]).float()
        return self.transform(Picture.read(self.file(index), self.upright)), label

    def file(self, index: int) -> Path:
        """Path of the image."""
        return self.folder / self.names[index]


def parse_instances(content: dict[str, Any]) -> tuple[list[str], list[str], np.ndarray]:
    """Names of the categories, file names of the images, sorted, and their labels, bool (images, K).

    Raises KeyError, TypeError or ValueError for content of another kind.
    """
    categories = sorted((int(each["id"]), str(each["name"])) for each in content["categories"])
    column = {number: k for k, (number, _) in enumerate(categories)}
    sets: dict[int, set[int]] = {}
    for annotation in content["annotations"]:
        if (category := annotation["category_id"]) not in column:
            raise ValueError(f"an annotation has the category {category!r}, which is not listed")
        sets.setdefault(annotation["image_id"], set()).add(column[category])
    images = sorted((str(each["file_name"]), each["id"]) for each in content["images"] if each["id"] in sets)
    if len({number for _, number in images}) < len(sets):
        raise ValueError("some annotations are of images that are not listed")
    labels = np.zeros((len(images), len(categories)), dtype=bool)
    for row, (_, number) in enumerate(images):
        labels[row, list(sets[number])] = True
    return [name for _, name in categories], [name for name, _ in images], labels


def _read(root: Path, path: Path) -> Any:
    """The content of a JSON file; raises DataError if it is missing or damaged."""
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise DataError(f"data.root={root} {what}: {WANTED}")
    if not path.is_file():
        raise DataError(f"data.root={root} has no {path.relative_to(root)}: {WANTED}")
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON: {one_line(error)}") from error


def _require_images(folder: Path, names: list[str]) -> None:
    """Raise DataError if any of the images is missing."""
    try:
        present = set(os.listdir(folder))
    except OSError as error:
        raise DataError(f"the images of COCO are missing, {folder} cannot be read: {error.strerror}") from error
    if missing := [name for name in names if name not in present]:
        raise DataError(
            f"{count(len(missing), 'image')} of {len(names)} missing in {folder} ({name_first(missing)}): "
            "download the rest, or choose the annotations of these images"
        )


class CocoDataModule(ImageDataModule):
    """MS-COCO of ``year``, 80 classes; raises DataError if ``root`` is not set."""

    Settings = CocoSettings
    settings: CocoSettings
    multilabel = True

    def __init__(self, settings: CocoSettings) -> None:
        super().__init__(settings, settings.augment, settings.max_unreadable)
        self.root = given_root(settings.root)

    def build(self, split: Split) -> LabeledImages:
        settings = self.settings
        if split == "train":
            transform = train_transform(self.image_size, self.augment, self.mean)
        else:
            transform = eval_transform(self.image_size, settings.crop_ratio, settings.interpolation)
        return CocoImages(self.root, f"{split}{settings.year}", transform, settings.exif_orientation)
