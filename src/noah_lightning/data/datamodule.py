"""What all data sets share: loaders, order, normalisation, and the numbers that describe the images."""

import math
import os
from pathlib import Path
from typing import Literal, Protocol

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from noah_lightning.config.choices import AugmentSettings, DataSettings
from noah_lightning.data.loader import DrawnImages, EpochBatches, EpochOrder, TrainLoader
from noah_lightning.data.samplers import EpochRepeat, EpochShuffle, epoch_generator
from noah_lightning.data.seeding import seed_training_step
from noah_lightning.data.transforms import OnDevice
from noah_lightning.errors import DataError

Split = Literal["train", "val"]
Batch = tuple[Tensor, Tensor]
PLAIN = AugmentSettings()
PADDING = -1  # the label that the task does not count


class LabelledImages(Protocol):
    """A map-style data set of (uint8 (3, H, W), label) with the names of its classes in label order."""

    classes: list[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Tensor, int]: ...


class Padded:
    """A data set that goes on behind its end, with images labelled ``PADDING``.

    So every process has equally many validation batches, as their synchronisation needs, and no image counts twice.
    """

    def __init__(self, images: LabelledImages) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index < len(self.images):
            return self.images[index]
        return self.images[0][0], PADDING


class ImageDataModule(LightningDataModule):
    """Images and labels for training and validation; the only owner of class count, mean and std.

    Loaders yield (images uint8 (B, 3, H, W), labels int64 (B,)). Images travel to the device as bytes, a
    quarter of what floats would take, and are normalised there. Subclasses supply :meth:`build`.

    Args:
        settings: of the data set; ``num_classes`` is checked against the data in :meth:`setup`, ``batch_size`` is per
            process, ``num_workers`` None means :func:`default_workers`, ``seed`` fixes the order of the training
            images and all that is drawn for a batch.
        augment: its ``erasing`` and ``repeats`` are applied here, the rest is for :meth:`build`.
        max_unreadable: training images that may be unreadable, in each process; others take their places.

    Attributes:
        Settings: the class of ``settings``, which says what they may be.
    """

    Settings: type[DataSettings] = DataSettings

    def __init__(self, settings: DataSettings, augment: AugmentSettings = PLAIN, max_unreadable: int = 0) -> None:
        super().__init__()
        self.num_classes, self.image_size = settings.num_classes, settings.image_size
        self.mean, self.std = settings.mean, settings.std
        self.batch_size, self.seed = settings.batch_size, settings.seed
        self.num_workers = default_workers() if settings.num_workers is None else settings.num_workers
        self.augment = augment
        self.max_unreadable = max_unreadable
        self.train_dataset: LabelledImages | None = None
        self.val_dataset: LabelledImages | None = None
        self.class_names: list[str] = []  # in label order, filled by setup
        self.on_device = OnDevice(self.mean, self.std, augment.erasing)

    def build(self, split: Split) -> LabelledImages:
        """The images of one split, with that split's transforms."""
        raise NotImplementedError

    def setup(self, stage: str) -> None:
        """Builds both splits for "fit", only the validation split for every other stage.

        Raises:
            DataError: an empty split, or a class count other than ``num_classes``.
        """
        if stage == "fit" and self.train_dataset is None:
            self.train_dataset = self._build_checked("train")
        if self.val_dataset is None:
            self.val_dataset = self._build_checked("val")
        self.class_names = list(self.val_dataset.classes)

    def _build_checked(self, split: Split) -> LabelledImages:
        dataset = self.build(split)
        if len(dataset) == 0:
            raise DataError(f"the {split} set holds no image")
        found = len(dataset.classes)
        if found != self.num_classes:
            raise DataError(
                f"data.num_classes={self.num_classes}, but the {split} set has {found} classes: "
                f"set data.num_classes={found}"
            )
        return dataset

    def train_order(self, epoch: int) -> EpochOrder:
        """In which order this process visits the training images, from ``epoch`` on."""
        assert self.train_dataset is not None, "setup('fit') comes first"
        images, repeats, share = len(self.train_dataset), self.augment.repeats, self._rank_of()
        if repeats == 1:
            return EpochShuffle(images, self.seed, epoch, *share)
        return EpochRepeat(images, self.seed, repeats, epoch, *share)

    def train_batches(self, epoch: int, rank: int, first: int = 0) -> EpochBatches:
        """The training batches of one process from a batch of an epoch on, before they are loaded."""
        order = self.train_order(epoch)
        order.rank = rank
        # A short last batch makes batch norm noisy; but a set below one batch must not vanish.
        drop_last = len(order) >= self.batch_size
        return EpochBatches(order, self.batch_size, drop_last, self.seed, rank, first)

    def train_file(self, number: int) -> Path | None:
        """Where a training image lies, if that is a file."""
        return None

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled anew each epoch; order and augmentation depend on the seed, the epoch and the batch only."""
        epoch = self.trainer.current_epoch if self.trainer else 0
        return TrainLoader(
            DrawnImages(self.train_dataset, self.max_unreadable),
            self.train_batches(epoch, self._rank_of()[0], self._batches_done()),
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            generator=epoch_generator(self.seed, 0),  # else each pass would draw from the global generator
        )

    def val_dataloader(self) -> DataLoader[Batch]:
        """In fixed order, nothing dropped; process r of W takes the images r, r + W, r + 2W, ..."""
        assert self.val_dataset is not None, "setup comes first"
        rank, processes = self._rank_of()
        each = math.ceil(len(self.val_dataset) / processes)
        return DataLoader(
            Padded(self.val_dataset),  # type: ignore[arg-type]
            batch_size=self.batch_size,
            sampler=range(rank, each * processes, processes),
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            generator=epoch_generator(self.seed, 0),
        )

    def _rank_of(self) -> tuple[int, int]:
        """Number of this process, and of all."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _batches_done(self) -> int:
        """Of the epoch in whose middle a run goes on."""
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
        """Lightning calls this once the batch is on the device: normalises, and in training erases."""
        images, labels = batch
        images = self.on_device.normalize(images)
        if self.trainer and self.trainer.training:
            images = self.on_device.erase(images)
        if self.trainer:  # Lightning has let the bytes be: 16-true or 64-true weights want such images
            images = self.trainer.precision_plugin.convert_input(images)
        return images, labels


def default_workers() -> int:
    """One loading process per CPU of this process, less one for the training loop; 0 to 8.

    The processes of a run that torch's launcher has started on this machine share its CPUs.
    """
    try:
        cpus = len(os.sched_getaffinity(0))  # honours containers and job schedulers
    except AttributeError:  # macOS, Windows
        cpus = os.cpu_count() or 1
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(8, max(0, cpus // processes - 1))
