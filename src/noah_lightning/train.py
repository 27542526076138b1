"""One training run: config → model → data → task → trainer, and nothing else."""

import logging
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import DictConfig, OmegaConf
from torch import nn

from noah_lightning import console, run_files, runs
from noah_lightning.checks import flag, whole_number
from noah_lightning.config import settings, typed
from noah_lightning.cost import count_parameters
from noah_lightning.data import create_data
from noah_lightning.data.module import ImageDataModule
from noah_lightning.errors import ConfigError, UserError, one_line
from noah_lightning.loggers import close_loggers, logger_callbacks, make_loggers
from noah_lightning.processes import processes_per_node, processes_started, rank
from noah_lightning.record import BestRecord
from noah_lightning.resume import check_same, keep_metrics, last_checkpoint
from noah_lightning.task import (
    ClassificationTask,
    MixingSettings,
    OptimizerSettings,
    ScheduleSettings,
    scaled_to,
)
from noah_lightning.task.mixing import check_even
from noah_lightning.task.schedule import is_non_negative

log = logging.getLogger("noah_lightning")


def train(config: DictConfig, run_dir: Path, resume: bool = False) -> runs.Results:
    """Train as the resolved configuration says, and leave everything about it in ``run_dir``.

    Everything is built before the run directory is claimed, so a mistake leaves nothing behind. With ``resume`` a run
    that is there already goes on from its last checkpoint, which is that of its last whole epoch.

    Raises:
        UserError: whatever the user can mend.
    """
    _check_budget(config)
    _check_recipe(config)
    pl.seed_everything(config.seed, workers=True, verbose=False)
    model = runs.build_model(config)  # before the data, which may take long to look through
    data = create_data(config.data.name, **settings(config, "data", "name"))
    report = console.EpochReport()
    loggers = make_loggers(config, run_dir)
    record = BestRecord(run_dir / run_files.PREDICTIONS, data)
    callbacks = [console.progress(config.trainer.log_every_n_steps), report, record, *_checkpoints(run_dir, config)]
    callbacks += logger_callbacks(config, loggers, report, data)
    trainer = make_trainer(config, run_dir, logger=loggers, callbacks=callbacks)
    if trainer.world_size != processes_started():  # each would train a model of its own
        raise ConfigError(
            f"{processes_started()} processes were started, but trainer.devices and trainer.num_nodes ask for "
            f"{trainer.world_size}; add trainer=ddp"
        )
    if config.trainer.sync_batchnorm and isinstance(trainer.accelerator, CPUAccelerator):
        raise ConfigError("trainer.sync_batchnorm=true works on GPUs only; leave it false")
    batch = data.batch_size * config.trainer.accumulate_grad_batches * trainer.world_size
    task = make_task(config, model, batch)
    if rank() == 0:  # the other processes are told by Lightning when the data is there
        _prepare(data, task)
    checkpoint = last_checkpoint(run_dir) if resume else None
    log_file = console.log_to(run_dir / run_files.LOG) if _claim(run_dir, config, resume) else None
    results = None
    try:
        _announce(config, run_dir, task, data)
        if checkpoint and rank() == 0:
            log.info("resumed  from %s", checkpoint)
            keep_metrics(run_dir, loggers, checkpoint)
        trainer.fit(task, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        results = _conclude(run_dir, task, report)
        return results
    except MisconfigurationException as error:
        raise ConfigError(one_line(error)) from error
    except SystemExit as stop:  # how Lightning ends a run at Ctrl-C
        if trainer.interrupted:
            log.info("interrupted in epoch %d; what there is so far lies in %s", task.current_epoch + 1, run_dir)
            raise KeyboardInterrupt from stop
        raise
    except UserError as error:
        if log_file:
            console.write_to_log_only(log_file, str(error))  # the console is told where the error ends up
        raise
    finally:
        close_loggers(loggers, results)
        if log_file:
            console.stop_log(log_file)


def _prepare(data: ImageDataModule, task: ClassificationTask) -> None:
    """Look through the data before the run directory is claimed."""
    data.prepare_data()
    data.setup("fit")
    if task.mixing is not None:
        assert data.train_dataset is not None
        check_even(min(data.batch_size, len(data.train_dataset)))  # a set below one batch is one batch


def _claim(run_dir: Path, config: DictConfig, resume: bool) -> bool:
    """Of several processes the first one claims the run directory; whether this is it."""
    if rank() == 0:
        if resume and (run_dir / run_files.CONFIG).exists():
            check_same(run_dir, config)
        else:
            runs.write_config(run_dir, config)
    else:  # dropout, mixing and erasing draw apart; the weights start as those of the first process all the same
        pl.seed_everything((config.seed + rank()) % 2**32, workers=True, verbose=False)
    return rank() == 0


def make_task(config: DictConfig, model: nn.Module, batch: int) -> ClassificationTask:
    """The training task of a recipe, around a model, with the rate for ``batch`` images per optimiser step.

    Raises:
        ConfigError: recipe settings out of their range.
    """
    optimizer = typed(OptimizerSettings, config, "recipe.optimizer")
    return ClassificationTask(
        model,
        scaled_to(optimizer, batch),
        typed(ScheduleSettings, config, "recipe.schedule"),
        label_smoothing=config.recipe.label_smoothing,
        mixing=typed(MixingSettings, config, "recipe.mixing"),
        num_classes=config.data.num_classes,
        ema=config.recipe.ema,
    )


def make_trainer(config: DictConfig, run_dir: Path, **arguments: Any) -> pl.Trainer:
    """Lightning's trainer with the settings of ``config.trainer``.

    Raises:
        ConfigError: settings Lightning does not accept.
    """
    try:
        return pl.Trainer(
            **settings(config, "trainer", "devices"),
            devices=_devices(config),
            use_distributed_sampler=False,  # the data module shares out the images
            default_root_dir=run_dir,
            enable_model_summary=False,
            enable_progress_bar=console.on_terminal(),
            **arguments,
        )
    except (MisconfigurationException, TypeError, ValueError) as error:
        raise ConfigError(f"trainer: {one_line(error)}") from error


def _devices(config: DictConfig) -> Any:
    """``trainer.devices`` as Lightning takes it; ``auto`` becomes the number of processes that there are."""
    devices = settings(config, "trainer")["devices"]
    return processes_per_node(config.trainer) if devices in ("auto", -1) else devices


def _checkpoints(run_dir: Path, config: DictConfig) -> list[ModelCheckpoint]:
    """``best`` and ``last``; apart, because Lightning's ``save_last`` waits for the next best one."""
    folder = run_dir / run_files.CHECKPOINTS
    checkpoints = [
        ModelCheckpoint(folder, "best", monitor="val/top1", mode="max", enable_version_counter=False),
        ModelCheckpoint(folder, "last", enable_version_counter=False),
    ]
    if config.recipe.ema is not None:
        checkpoints.append(
            ModelCheckpoint(folder, "best_ema", monitor="val/ema_top1", mode="max", enable_version_counter=False)
        )
    return checkpoints


def _check_budget(config: DictConfig) -> None:
    """Refuse what would be found out only after the last epoch: a run that never trains or never validates."""
    trainer = config.trainer
    whole_number("seed", config.seed, low=0, high=2**32 - 1)
    whole_number("trainer.max_epochs", trainer.max_epochs, low=1, high=10**6)
    whole_number("trainer.check_val_every_n_epoch", trainer.check_val_every_n_epoch, 1, trainer.max_epochs)
    whole_number("trainer.log_every_n_steps", trainer.log_every_n_steps, low=1)
    whole_number("trainer.accumulate_grad_batches", trainer.accumulate_grad_batches, low=1)
    for key in ("limit_train_batches", "limit_val_batches"):
        if trainer[key] == 0:
            raise ConfigError(f"trainer.{key}=0 leaves nothing to do; give a number of batches, or null for all")


def _check_recipe(config: DictConfig) -> None:
    """Refuse what would otherwise be left out without a word, or stand still."""
    flag("recipe.equal_dropout", config.recipe.equal_dropout)  # of which only the baseline takes notice
    for key in ("recipe.gradient_clip", "trainer.gradient_clip_val"):  # the second follows the first, unless set
        norm = OmegaConf.select(config, key)
        if norm is not None and (not is_non_negative(norm) or norm == 0):
            raise ConfigError(f"{key}={norm!r} must be a number above 0, or null for no clipping")
    precision = config.trainer.precision
    if config.recipe.ema is not None and precision in ("16-true", "bf16-true"):
        raise ConfigError(
            f"recipe.ema moves weights by less than trainer.precision={precision} can hold; "
            f"use {precision.replace('true', 'mixed')}"
        )


def _announce(config: DictConfig, run_dir: Path, task: ClassificationTask, data: ImageDataModule) -> None:
    count = count_parameters(task.model)
    log.info("run      %s", run_dir)
    log.info("model    %s, head %s, %s parameters", config.model.name, config.head.name, f"{count:,}")
    log.info("data     %s, %d classes, batch %d", config.data.name, data.num_classes, data.batch_size)
    log.info("rate     %s, %s", _rate(config, task.optimizer_settings), task.optimizer_settings.name)


def _rate(config: DictConfig, scaled: OptimizerSettings) -> str:
    """``0.1 × 64/256 = 0.025``, or the rate alone where it holds for every batch."""
    if scaled.lr_batch is None:
        return f"{scaled.lr:g}"
    base = config.recipe.optimizer
    return f"{base.lr:g} × {scaled.lr_batch}/{base.lr_batch} = {scaled.lr:g}"


def _conclude(run_dir: Path, task: ClassificationTask, report: console.EpochReport) -> runs.Results:
    best, ema = report.best.accuracy, report.best_ema.accuracy
    assert best is not None, "every run validates at least once"
    results = runs.Results(
        parameters=count_parameters(task.model),
        epochs=task.current_epoch,
        best_epoch=report.best.epoch,
        correct=best.correct,
        correct_top5=best.correct_top5,
        images=best.images,
        train_seconds=report.train_seconds,
        images_per_second=report.images_per_second,
        peak_memory=torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
        ema_best_epoch=report.best_ema.epoch if ema else None,
        ema_correct=ema.correct if ema else None,
        ema_correct_top5=ema.correct_top5 if ema else None,
    )
    if rank() == 0:
        runs.write_results(run_dir, results)
    log.info("best     %s", report.best)
    if ema:
        log.info("best ema %s", report.best_ema)
    return results
