"""Division of an optimizer step among processes and passes, and the checks of its sizes before training."""

import math
from typing import NamedTuple

import torch
from torch.func import functional_call

from noah_lightning.config.schema import RunConfig
from noah_lightning.data.datamodule import ImageDataModule
from noah_lightning.distributed.environment import processes_started
from noah_lightning.errors import ConfigError, count, one_line
from noah_lightning.task import ClassificationTask
from noah_lightning.task.classification import check_even


class BatchSplit(NamedTuple):
    """Division of an optimizer step: ``images`` in each process, in each of ``passes`` accumulated passes."""

    processes: int
    images: int
    passes: int

    @classmethod
    def of(cls, config: RunConfig, data: ImageDataModule) -> "BatchSplit":
        """The division by the processes of this run."""
        return cls(processes_started(), data.batch_size, config.trainer.accumulate_grad_batches)

    @property
    def in_step(self) -> int:
        """Images of an optimizer step."""
        return self.processes * self.images * self.passes

    def __str__(self) -> str:
        processes = f"{self.processes} × " if self.processes > 1 else ""
        return f"{processes}{count(self.images, 'image')}" + (f" × {self.passes} passes" if self.passes > 1 else "")


def check_batch(config: RunConfig, data: ImageDataModule, task: ClassificationTask, split: BatchSplit) -> None:
    """Raise ConfigError for a number of images that mixing or batch norm cannot train on."""
    share = len(data.train_order(seed=0, world_size=split.processes))
    images = min(split.images, share)  # a smaller data set is one batch
    if task.mixing is not None:
        check_even(images)
    if images > 1 or (config.trainer.sync_batchnorm and split.processes > 1):
        return
    buffers = {name: buffer.clone() for name, buffer in task.model.named_buffers()}  # batch norm updates them
    image = torch.zeros(1, 3, data.image_size, data.image_size)
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            functional_call(task.model, buffers, image)
    except Exception as error:  # others, such as those of a head for GPUs only, are for the training to raise
        if "more than 1 value per channel" not in str(error):
            return
        found = split._replace(images=images)
        advice = "a smaller trainer.accumulate_grad_batches" if split.passes > 1 else "a larger recipe.batch_size"
        raise ConfigError(
            f"batch norm cannot train on 1 value per channel, which a layer of the model has with {found} at "
            f"data.image_size={data.image_size}; use {advice if share > 1 else 'more training images'} or a larger "
            "data.image_size"
        ) from None


def size_warnings(config: RunConfig, task: ClassificationTask, data: ImageDataModule, split: BatchSplit) -> list[str]:
    """Warnings for a step of more images than there are, and for images smaller than a position of the feature map.

    Raises ConfigError if the model cannot take such images at all.
    """
    assert data.train_dataset is not None
    warnings, images, size = [], len(data.train_dataset), data.image_size
    if split.in_step > images:
        share = math.ceil(images / split.processes)
        true = min(images, split.processes * (share // split.images * split.images or share))
        rate = f" while the learning rate is that for {split.in_step}" if task.optimizer_settings.lr_batch else ""
        warnings.append(
            f"recipe.batch_size={split.in_step} is more than the {images} training images: each step has {true}{rate}"
            f"; choose at most {images}"
        )
    infos = [getattr(each, "feature_info", None) for each in task.model.modules()]  # of timm's models
    covered = max((info[-1].get("reduction", 0) for info in infos if info and isinstance(info, list)), default=0)
    if size < covered:
        name = config.model.name
        try:
            with torch.no_grad():
                task.model.eval()(torch.zeros(1, 3, size, size))
        except RuntimeError as error:
            raise ConfigError(f"data.image_size={size} is too small for {name}: {one_line(error)}") from error
        task.model.train()
        warnings.append(
            f"data.image_size={size} is less than the {covered} pixels that a position of the feature map of {name} "
            "covers, so there is only one position; choose larger images"
        )
    return warnings
