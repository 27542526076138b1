"""Images that a user names: files, folders, and numbers of validation images."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from noah_lightning.data import create_data
from noah_lightning.data.datamodule import LabeledImages
from noah_lightning.data.index import images_in
from noah_lightning.errors import ConfigError, DataError, count
from noah_lightning.tools.trained import ClassNames, Trained

_NUMBERS = re.compile(r"val:(\d+(-\d+)?(,\d+(-\d+)?)*)")
MOST = 500  # all of them go into one page


@dataclass(frozen=True)
class NamedImage:
    """An image as the model sees it, and its true classes, if known: one, or any number of multi-label data."""

    name: str
    pixels: Tensor  # uint8 (3, H, W)
    true: Sequence[int] = ()


class Images:
    """The images that ``words`` name; they are read one at a time, when iterated.

    Args:
        trained: the model that sees them.
        words: files; folders, with those in them; and ``val:0-7,12``, numbers of validation images of a run. The true
            class of a file is the nearest folder with the name of a class: its own, or of those below the named one.

    Attributes:
        names: of the classes.

    Raises:
        ConfigError: no or too many images, or numbers where there is no validation set.
        DataError: no such file, folder or validation image, or files for a data set that has none.
    """

    def __init__(self, trained: Trained, words: Sequence[str]) -> None:
        self._trained, labels = trained, trained.labels
        numbered = [word for word in words if _NUMBERS.fullmatch(word) and not Path(word).exists()]
        self._validation = _validation_set(trained, numbered[0]) if numbered else None
        self._chosen: list[int | tuple[Path, Path]] = []  # number in the validation set; or file, and named folder
        for word in words:
            self._chosen += self._numbers(word) if word in numbered else self._files(Path(word))
        if not self._chosen:
            raise ConfigError("no images are named; name files, folders, or validation images such as val:0-7")
        if len(self._chosen) > MOST:
            raise ConfigError(f"{len(self._chosen):,} images are more than the {MOST} of one gallery; name fewer")
        if labels is None and self._validation is not None:
            labels = self._validation.classes
        self.names = ClassNames.of(labels, trained.num_classes)

    def __len__(self) -> int:
        return len(self._chosen)

    def __iter__(self) -> Iterator[NamedImage]:
        """Raises DataError for a file that is not an image."""
        for chosen in self._chosen:
            if isinstance(chosen, int):
                assert self._validation is not None
                pixels, label = self._validation[chosen]
                yield NamedImage(f"val:{chosen}", pixels, _classes(label))
            else:
                file, folder = chosen
                assert self._trained.read is not None
                yield NamedImage(str(file), self._trained.read(file), self._true_class(file, folder))

    def _numbers(self, word: str) -> list[int]:
        """The numbers in ``val:0-7,12``."""
        assert self._validation is not None
        numbers: list[int] = []
        for part in word.partition(":")[2].split(","):
            first, _, last = part.partition("-")
            numbers += range(int(first), min(int(last or first), len(self._validation)) + 1)
        if not numbers or max(numbers) >= len(self._validation):
            images = count(len(self._validation), "image")
            raise DataError(f"{word}: the validation set has {images}, numbered from 0, and ranges rise")
        return numbers

    def _files(self, path: Path) -> list[int | tuple[Path, Path]]:
        if self._trained.read is None:
            assert self._trained.data is not None
            raise DataError(
                f"images of data={self._trained.data.name} are not files such as {path}: name validation images by "
                "number, such as val:0-7"
            )
        if path.is_dir():
            return [(file, path) for file in images_in(path)]
        if not path.exists():
            raise DataError(f"{path} does not exist; name image files, folders, or validation images such as val:0-7")
        return [(path, path.parent)]

    def _true_class(self, file: Path, folder: Path) -> Sequence[int]:
        for parent in file.parents:
            if (name := parent.resolve().name) in self.names.labels:
                return [self.names.labels.index(name)]
            if parent == folder:
                break
        return ()


def _classes(label: int | Tensor) -> list[int]:
    """The classes in a label of a data set: a number, or for multi-label data 1 for each class in the image (K,)."""
    numbers = torch.as_tensor(label)
    return numbers.nonzero().flatten().tolist() if numbers.ndim else [int(numbers)]


def _validation_set(trained: Trained, word: str) -> LabeledImages:
    if trained.data is None:
        raise ConfigError(f"{word}: only a run has a validation set; name image files or folders")
    data = create_data(**trained.data.arguments())
    data.prepare_data()
    data.setup("validate")
    assert data.val_dataset is not None
    return data.val_dataset
