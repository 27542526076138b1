"""Base class of the data modules: loaders, sampling order, normalization."""

import math
import os
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from noah_lightning.config.choices import AugmentSettings, DataSettings
from noah_lightning.data.loader import DrawnImages, EpochBatches, Label, TrainLoader, seed_training_step
from noah_lightning.data.samplers import EpochRepeat, EpochShuffle, epoch_generator
from noah_lightning.data.subsets import Subset, file_of, hold_out
from noah_lightning.data.transforms import OnDevice
from noah_lightning.errors import DataError, count

Split = Literal["train", "val"]
Batch = tuple[Tensor, Tensor]
PLAIN = AugmentSettings()
PADDING = -1  # label that the task ignores


class LabeledImages(Protocol):
    """Map-style data set of (image uint8 (3, H, W), label), with the class names in label order.

    If it has ``labels``, an integer per image, ``data.holdout`` does not need to read all images.
    """

    classes: list[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Tensor, Label]: ...


class Padded:
    """Data set with images labeled ``PADDING`` past its end.

    All processes can then have the same number of validation batches, which DDP requires, and no image counts twice.
    """

    def __init__(self, images: LabeledImages) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Label]:
        if index < len(self.images):
            return self.images[index]
        image, label = self.images[0]
        return image, torch.full_like(label, PADDING) if isinstance(label, Tensor) else PADDING


class ImageDataModule(LightningDataModule):
    """Images and labels for training and validation, with their class count, mean and standard deviation.

    Loaders yield (images uint8 (B, 3, H, W), labels int64 (B,)), or multi-hot labels float32 (B, K) if
    ``multilabel``. Images are copied to the device as bytes, a quarter of the size of floats, and normalized there.
    Subclasses implement :meth:`build`.

    Args:
        settings: an instance of ``Settings``. ``batch_size`` is per process, ``num_workers=None`` means
            :func:`default_workers`, and ``seed`` determines the order of the training images and all random numbers
            drawn for a batch.
        augment: ``erasing`` and ``repeats`` are applied here, the rest by :meth:`build`; nothing if not ``enabled``.
        max_unreadable: number of unreadable training images to replace by others, in each process.
    """

    Settings: type[DataSettings] = DataSettings
    multilabel: bool = False  # whether an image may have several classes, or none

    def __init__(self, settings: DataSettings, augment: AugmentSettings = PLAIN, max_unreadable: int = 0) -> None:
        super().__init__()
        self.settings, self.augment, self.max_unreadable = settings, augment, max_unreadable
        self.num_classes, self.image_size = settings.num_classes, settings.image_size
        self.mean, self.std = settings.mean, settings.std
        self.batch_size, self.seed = settings.batch_size, settings.seed
        self.num_workers = default_workers() if settings.num_workers is None else settings.num_workers
        self.train_dataset: LabeledImages | None = None
        self.val_dataset: LabeledImages | None = None
        self.class_names: list[str] = []  # in label order, filled by setup
        self.on_device = OnDevice(self.mean, self.std, augment.erasing if augment.enabled else 0.0)

    def build(self, split: Split) -> LabeledImages:
        """The images of one split, with its transforms."""
        raise NotImplementedError

    def without_augmentation(self, images: LabeledImages) -> LabeledImages:
        """The images of ``build("train")`` prepared as validation images are.

        To be overridden where :meth:`build` augments.
        """
        return images

    def setup(self, stage: str) -> None:
        """Build the validation split, and for "fit" the training split too; both from train/ for ``holdout``.

        Raises DataError for an empty split, a class count other than ``num_classes``, or too few images to hold out.
        """
        if self.settings.holdout:
            self._hold_out(stage)
        elif stage == "fit" and self.train_dataset is None:
            self.train_dataset = self._build_checked("train")
        if self.val_dataset is None:
            self.val_dataset = self._build_checked("val")
        self.class_names = list(self.val_dataset.classes)

    def _hold_out(self, stage: str) -> None:
        """Divide the training images into those for training, built for "fit" only, and those for validation."""
        if self.val_dataset is not None and (stage != "fit" or self.train_dataset is not None):
            return
        images = self._build_checked("train")
        kept, held_out = hold_out(images, self.settings.holdout, self.seed, self.multilabel)
        self.val_dataset = Subset(self.without_augmentation(images), held_out)
        if stage == "fit":
            self.train_dataset = Subset(images, kept)

    def _build_checked(self, split: Split) -> LabeledImages:
        dataset = self.build(split)
        found, wanted = len(dataset.classes), self.num_classes
        if len(dataset) == 0:
            raise DataError(f"the {split} set has no images")
        if found != wanted:
            has = f"the {split} set has {count(found, 'class')}"
            raise DataError(f"data.num_classes={wanted}, but {has}: set data.num_classes={found}")
        return dataset

    def train_order(self, **share: int) -> EpochShuffle:
        """Order in which a process visits the training images; ``share`` is the seed, epoch, rank and world size."""
        assert self.train_dataset is not None, "call setup('fit') first"
        if self.augment.repeats == 1:
            return EpochShuffle(len(self.train_dataset), **share)
        return EpochRepeat(len(self.train_dataset), repeats=self.augment.repeats, **share)

    def train_batches(self, epoch: int, rank: int, first: int = 0) -> EpochBatches:
        """The training batches of process ``rank``, before they are loaded, starting with batch ``first``."""
        order = self.train_order(seed=self.seed, epoch=epoch, rank=rank, world_size=self._rank_of()[1])
        # A short last batch makes batch norm noisy, but a data set smaller than one batch must not be dropped.
        return EpochBatches(order, self.batch_size, drop_last=len(order) >= self.batch_size, first=first)

    def train_file(self, number: int) -> Path | None:
        """The file of a training image, from the data set's ``file(number)`` if it has such a method."""
        return file_of(self.train_dataset, number)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Training batches, shuffled in each epoch; order and augmentation depend only on seed, epoch and batch."""
        return self.train_loader(self.trainer.current_epoch if self.trainer else 0, self._batches_done())

    def train_loader(self, epoch: int, first: int = 0) -> DataLoader[Batch]:
        """The training batches of this process in an epoch, starting with batch ``first``."""
        batches = self.train_batches(epoch, self._rank_of()[0], first)
        return TrainLoader(DrawnImages(self.train_dataset, self.max_unreadable), batches, **self._loading())

    def val_dataloader(self) -> DataLoader[Batch]:
        """All validation images in fixed order; rank r of W loads the images r, r + W, r + 2W, ..."""
        assert self.val_dataset is not None, "call setup first"
        rank, processes = self._rank_of()
        each = math.ceil(len(self.val_dataset) / processes)
        own = range(rank, each * processes, processes)
        padded: Any = Padded(self.val_dataset)  # does not inherit from Dataset
        return DataLoader(padded, self.batch_size, sampler=own, **self._loading())

    def _loading(self) -> dict[str, Any]:
        """Arguments of both loaders."""
        return {
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "pin_memory": torch.cuda.is_available(),
            "generator": epoch_generator(self.seed, 0),  # otherwise each pass draws from the global generator
        }

    def _rank_of(self) -> tuple[int, int]:
        """Rank and world size."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _batches_done(self) -> int:
        """Batches done of the epoch within which a run resumes."""
        if not self.trainer:
            return 0
        progress = self.trainer.fit_loop.epoch_loop.batch_progress
        return 0 if progress.is_last_batch else progress.state_dict()["current"]["processed"]

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Seed the global generators for the coming training step; Lightning's first hook in a step."""
        if self.trainer and self.trainer.training:
            number = self.trainer.fit_loop.epoch_loop.batch_idx + 1
            seed_training_step(self.seed, self.trainer.global_rank, self.trainer.current_epoch, number)
        return batch

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Normalize the images on the device, and in training apply random erasing."""
        images, labels = batch
        images = self.on_device.normalize(images)
        if self.trainer and self.trainer.training:
            images = self.on_device.erase(images)
        if self.trainer:  # Lightning does not convert bytes, and 16-true or 64-true weights need such images
            images = self.trainer.precision_plugin.convert_input(images)
        return images, labels


def default_workers() -> int:
    """0 to 8 DataLoader workers: one for each CPU that is this process's share, less one for the training loop."""
    try:
        cpus = len(os.sched_getaffinity(0))  # respects containers and job schedulers
    except AttributeError:  # macOS, Windows
        cpus = os.cpu_count() or 1
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(8, max(0, cpus // processes - 1))
