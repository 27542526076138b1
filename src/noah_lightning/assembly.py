"""What a training is put together from: the task, the trainer and its callbacks, as a configuration says."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig
from torch import nn

from noah_lightning import console, run_files
from noah_lightning.allocator import keep_freed_memory
from noah_lightning.batch_split import BatchSplit, KeepPlace
from noah_lightning.checkpoint_file import WholeFiles
from noah_lightning.checkpoints import BestWeights, Checkpoints
from noah_lightning.config import settings, typed
from noah_lightning.data.module import ImageDataModule
from noah_lightning.epoch_report import EpochReport
from noah_lightning.errors import ConfigError, one_line
from noah_lightning.loggers import logger_callbacks
from noah_lightning.processes import processes_per_node, processes_started
from noah_lightning.progress import progress
from noah_lightning.record import BestRecord
from noah_lightning.stopping import StopRequest
from noah_lightning.task import (
    ClassificationTask,
    MixingSettings,
    OptimizerSettings,
    ScheduleSettings,
    scaled_to,
)


def make_task(config: DictConfig, model: nn.Module, batch: int) -> ClassificationTask:
    """The training task of a recipe, around a model, with the rate for ``batch`` images per optimiser step.

    Raises:
        ConfigError: recipe settings out of their range.
    """
    optimizer = typed(OptimizerSettings, config, "recipe.optimizer")
    if str(config.trainer.precision) in ("16", "16-mixed") and config.trainer.gradient_clip_val:
        # Lightning has no gradients to clip where a fused optimiser is to unscale them.
        optimizer = replace(optimizer, options={"fused": False} | dict(optimizer.options))
    return ClassificationTask(
        model,
        scaled_to(optimizer, batch),
        typed(ScheduleSettings, config, "recipe.schedule"),
        label_smoothing=config.recipe.label_smoothing,
        mixing=typed(MixingSettings, config, "recipe.mixing"),
        num_classes=config.data.num_classes,
        ema=config.recipe.ema,
        channels_last=config.trainer.channels_last,
        nonfinite=config.trainer.nonfinite,
    )


def batch_split(config: DictConfig, data: ImageDataModule) -> BatchSplit:
    """How the processes of this run share out the images of a step."""
    return BatchSplit(processes_started(), data.batch_size, config.trainer.accumulate_grad_batches)


def make_callbacks(
    config: DictConfig,
    run_dir: Path,
    loggers: Sequence[Logger],
    report: EpochReport,
    data: ImageDataModule,
    stop: StopRequest,
) -> list[Callback]:
    """What goes along with a training: progress, ``report``, the record of the best epoch, checkpoints, loggers.

    ``stop`` is asked after each step.

    Raises:
        ConfigError: settings of the logger out of range.
    """
    record = BestRecord(run_dir / run_files.PREDICTIONS, data)
    return [
        progress(config.trainer.log_every_n_steps),
        report,
        record,
        *_checkpoints(run_dir, config, stop),
        KeepPlace(batch_split(config, data)),
        *logger_callbacks(config, loggers, report, data),
    ]


def make_trainer(config: DictConfig, run_dir: Path, **arguments: Any) -> pl.Trainer:
    """Lightning's trainer with the settings of ``config.trainer``, in a process that keeps the memory of a step.

    Raises:
        ConfigError: settings Lightning does not accept.
    """
    keep_freed_memory()
    try:
        trainer = pl.Trainer(
            **settings(config, "trainer", "devices", "channels_last", "compile", "nonfinite"),
            devices=_devices(config),
            use_distributed_sampler=False,  # the data module shares out the images
            default_root_dir=run_dir,
            enable_model_summary=False,
            enable_progress_bar=console.on_terminal(),
            plugins=[WholeFiles()],
            **arguments,
        )
    except (MisconfigurationException, TypeError, ValueError) as error:
        advice = (
            f"; trainer.accelerator={config.trainer.accelerator} finds none here" if "backend" in str(error) else ""
        )
        raise ConfigError(f"trainer: {one_line(error)}{advice}") from error
    # Lightning's own would talk to the other processes from within a signal's handler; ours sets a flag.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    return trainer


def _devices(config: DictConfig) -> Any:
    """``trainer.devices`` as Lightning takes it; ``auto`` becomes the number of processes that there are."""
    devices = settings(config, "trainer")["devices"]
    return processes_per_node(config.trainer) if devices in ("auto", -1) else devices


def _checkpoints(run_dir: Path, config: DictConfig, stop: StopRequest) -> list[Callback]:
    """The weights of the best epoch, and the whole state as the run goes."""
    best: list[Callback] = [BestWeights(run_dir, "best", "val/top1")]
    if config.recipe.ema is not None:
        best.append(BestWeights(run_dir, "best_ema", "val/ema_top1"))
    when = config.checkpoint
    return [*best, Checkpoints(run_dir, when.every_n_steps, when.every_minutes, when.keep, stop)]
