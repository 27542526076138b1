"""Training of one run: config → model → data → task → trainer."""

import logging
import signal
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from torch import nn

from noah_lightning.callbacks.attention_curves import attention_callbacks
from noah_lightning.callbacks.batch_split import BatchSplit, check_batch, size_warnings
from noah_lightning.callbacks.checkpoints import (
    BestRecord,
    BestWeights,
    Checkpoints,
    WholeFiles,
    keep_only_last,
    resume_from,
)
from noah_lightning.callbacks.failures import NonFiniteCheck, failures_in_one_line
from noah_lightning.callbacks.progress import EpochReport
from noah_lightning.config.plugins import load_plugins
from noah_lightning.config.results import Results
from noah_lightning.config.schema import RunConfig, processes_per_node
from noah_lightning.data import create_data
from noah_lightning.data.datamodule import ImageDataModule
from noah_lightning.distributed.environment import keep_freed_memory, processes_started, rank
from noah_lightning.distributed.signals import Stopped, StopRequest, use_our_signal_handlers
from noah_lightning.errors import ConfigError, RunFailed, UserError, count, one_line, shell_word
from noah_lightning.loggers import console
from noah_lightning.loggers.factory import close_loggers, make_loggers
from noah_lightning.models.classifier import build_model, compiled
from noah_lightning.models.cost import count_parameters
from noah_lightning.models.frozen import freeze, warn_of_random_features
from noah_lightning.run_dir import CHECKPOINTS, CONFIG, LOG, RunDir
from noah_lightning.task import ClassificationTask, check_objective, check_options, make_objective, scaled_to

log = logging.getLogger("noah_lightning")
NO_BATCH = "as the next batch did not arrive (data.num_workers processes read the images)"
HALF = ("16", "16-mixed")  # Lightning trains in bf16-mixed instead on a CPU


def train(config: RunConfig, run_dir: Path, resume: bool = False, force: bool = False) -> Results:
    """Train by a resolved configuration, with all output in ``run_dir``.

    Everything is built before the run directory is claimed, so an invalid configuration leaves no files. With
    ``resume`` an existing run resumes from its last checkpoint, bitwise identical to an uninterrupted run; with
    ``force`` also if its batch is divided differently now, which restarts its epoch.

    Raises:
        UserError: anything that the user can fix.
        RunFailed: memory, the disk or a DataLoader worker failed, or a loss was not finite.
        Stopped: the run was stopped by a signal, after its state was saved.
    """
    load_plugins(config.plugins)
    check_options(config.recipe.optimizer)
    if config.recipe.optimizer.lr_choices and not resume:
        raise ConfigError(
            "recipe.optimizer.lr_choices is for -m with hydra/launcher=side_by_side; without it add "
            "recipe.optimizer.lr_choices=[] and set recipe.optimizer.lr"
        )
    asked, device = str(config.trainer.precision), config.trainer.accelerator
    on_cpu = device == "cpu" or (device == "auto" and not torch.accelerator.is_available())
    if asked in HALF and on_cpu and not (run_dir / CONFIG).exists():  # runs of earlier versions resume
        raise ConfigError(f"trainer.precision={asked} works on GPUs only; use bf16-mixed or 32-true")
    pl.seed_everything(config.seed, workers=True, verbose=False)
    model = build_model(config)  # before the data, which may take long to list
    data = create_data(**config.data.arguments())
    check_objective(config.recipe, data.multilabel, config.data.name)
    report, stop = EpochReport(make_objective(config.recipe).score), StopRequest()
    loggers = make_loggers(config, run_dir)
    callbacks = make_callbacks(config, run_dir, loggers, report, data, stop)
    trainer = make_trainer(config, run_dir, logger=loggers, callbacks=callbacks)
    if trainer.world_size != processes_started():  # each process would train its own model
        raise ConfigError(
            f"{processes_started()} processes were started, but trainer.devices and trainer.num_nodes require "
            f"{trainer.world_size}; add trainer=ddp"
        )
    if config.trainer.sync_batchnorm and isinstance(trainer.accelerator, CPUAccelerator):
        raise ConfigError("trainer.sync_batchnorm=true works on GPUs only; set it to false")
    run, split = RunDir(run_dir), BatchSplit.of(config, data)
    task = make_task(config, model, split.in_step)
    warnings: list[str] = []
    if rank() == 0:  # before the run directory is claimed; in the other processes, Lightning waits for the data
        data.prepare_data()
        data.setup("fit")
        check_batch(config, data, task, split)
        warnings = size_warnings(config, task, data, split)
    results, resume_command = None, f"noah resume {shell_word(run_dir)}"
    with ExitStack() as until_the_end:
        if rank() == 0:
            until_the_end.enter_context(run.locked())
            _claim(run, config, resume, force)
            until_the_end.enter_context(console.logging_to(run_dir / LOG))
        until_the_end.enter_context(stop.listening())
        until_the_end.callback(lambda: close_loggers(loggers, results))
        try:
            _announce(config, run_dir, task, data)
            warn_of_random_features(config.model)
            for warning in warnings:
                log.warning("%s", warning)
            saved = resume_from(run_dir, loggers, split, force) if resume else None
            if saved is None and (source := getattr(task.model, "weights_from", None)):
                log.info("weights  %s", source)
            if force and rank() == 0:
                run.replace_config(config, saved.steps if saved else 0)
            with compiled(task.model, config.trainer.compile), failures_in_one_line(config, data, run_dir, trainer):
                trainer.fit(task, datamodule=data, ckpt_path=saved.path if saved else None, weights_only=True)
            results = _conclude(run, task, report)
            return results
        except Stopped as stopped:
            log.info("stopped  by %s after %s; %s", stopped, count(trainer.global_step, "step"), resume_command)
            raise
        except MisconfigurationException as error:
            raise ConfigError(one_line(error)) from error
        except SystemExit as exit_:  # raised by Lightning on KeyboardInterrupt
            if trainer.interrupted:
                why = f", {NO_BATCH}" if stop.stuck else ""
                log.info("interrupted in epoch %d%s; %s", task.current_epoch + 1, why, resume_command)
                raise Stopped(stop.signal or signal.SIGINT) from exit_
            raise
        except RuntimeError as error:
            if stop.signal and trainer.world_size > 1:  # one that was interrupted no longer answers
                epoch = task.current_epoch + 1
                log.info("interrupted in epoch %d, as another process was; %s", epoch, resume_command)
                raise Stopped(stop.signal) from error
            raise
        except (UserError, RunFailed) as error:
            console.write_to_log_only(str(error))  # the caller prints it on the console
            raise


def _claim(run: RunDir, config: RunConfig, resume: bool, force: bool) -> None:
    """Start a run, or check that its settings and state allow it to resume."""
    if resume and (run.path / CONFIG).exists():
        run.check_same(config, force)
        run.check_unfinished()  # another process may have finished it since the last check
    else:
        run.claim(config)


def _announce(config: RunConfig, run_dir: Path, task: ClassificationTask, data: ImageDataModule) -> None:
    parameters, base, scaled = count_parameters(task.model), config.recipe.optimizer, task.optimizer_settings
    ratio = f"{base.lr:g} × {scaled.lr_batch}/{base.lr_batch} = " if scaled.lr_batch else ""
    log.info("run      %s", run_dir)
    log.info("model    %s, head %s, %s parameters", config.model.name, config.head.name, f"{parameters:,}")
    log.info("data     %s, %s, batch %d", config.data.name, count(data.num_classes, "class"), data.batch_size)
    log.info("rate     %s%g, %s", ratio, scaled.lr, scaled.name)


def _conclude(run: RunDir, task: ClassificationTask, report: EpochReport) -> Results:
    best, ema = report.best.score, report.best_ema.score
    assert best is not None, "every run validates at least once"
    results = Results(
        parameters=count_parameters(task.model),
        epochs=task.current_epoch,
        best_epoch=report.best.epoch,
        images=best.images,
        train_seconds=report.train_seconds,
        images_per_second=report.images_per_second,
        peak_memory=torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
        ema_best_epoch=report.best_ema.epoch if ema else None,
        **best.results(),
        **{f"ema_{name}": value for name, value in (ema.results() if ema else {}).items()},
    )
    if rank() == 0:
        run.write_results(results)
        keep_only_last(run.path / CHECKPOINTS)
    log.info("best     %s", report.best)
    if ema:
        log.info("best ema %s", report.best_ema)
    return results


def make_task(config: RunConfig, model: nn.Module, batch: int) -> ClassificationTask:
    """The training task of a recipe, with the learning rate for ``batch`` images per optimizer step."""
    optimizer = config.recipe.optimizer
    if str(config.trainer.precision) in HALF and config.trainer.gradient_clip_val:
        # Lightning cannot clip gradients that a fused optimizer unscales.
        optimizer = optimizer.model_copy(update={"options": {"fused": False} | optimizer.options})
    return ClassificationTask(
        model,
        scaled_to(optimizer, batch),
        config.recipe.schedule,
        label_smoothing=config.recipe.label_smoothing,
        mixing=config.recipe.mixing,
        num_classes=config.data.num_classes,
        ema=config.recipe.ema,
        channels_last=config.trainer.channels_last,
        nonfinite=config.trainer.nonfinite,
        trained=freeze(model) if config.model.freeze else None,
        objective=make_objective(config.recipe),
    )


def make_callbacks(
    config: RunConfig,
    run_dir: Path,
    loggers: Sequence[Logger],
    report: EpochReport,
    data: ImageDataModule,
    stop: StopRequest,
) -> list[Callback]:
    """Callbacks of the trainer, including ``report``; after each step they check ``stop``."""
    monitor = make_objective(config.recipe).monitor
    callbacks: list[Callback] = [
        NonFiniteCheck(),  # before callbacks that save
        report,
        BestRecord(RunDir(run_dir), data),
        BestWeights(run_dir, "best", f"val/{monitor}"),
    ]
    if config.recipe.ema is not None:
        callbacks.append(BestWeights(run_dir, "best_ema", f"val/ema_{monitor}"))
    callbacks.append(Checkpoints(run_dir, config.checkpoint, BatchSplit.of(config, data), stop))
    return callbacks + attention_callbacks(config, loggers, data)


def make_trainer(config: RunConfig, run_dir: Path, **arguments: Any) -> pl.Trainer:
    """Lightning's trainer with ``config.trainer``, in a process that keeps the memory that a step frees.

    Raises:
        ConfigError: settings that Lightning does not accept.
    """
    keep_freed_memory()
    devices: Any = config.trainer.devices
    try:
        trainer = pl.Trainer(
            **config.trainer.arguments("devices", "channels_last", "compile", "nonfinite"),
            devices=processes_per_node(config.trainer) if devices in ("auto", -1) else devices,
            use_distributed_sampler=False,  # the data module distributes the images
            default_root_dir=run_dir,
            enable_model_summary=False,
            enable_progress_bar=console.on_terminal(),
            plugins=[WholeFiles()],
            **arguments,
        )
    except (MisconfigurationException, TypeError, ValueError) as error:
        missing = f"; found no {config.trainer.accelerator} accelerator" if "backend" in str(error) else ""
        raise ConfigError(f"trainer: {one_line(error)}{missing}") from error
    use_our_signal_handlers(trainer)
    return trainer
