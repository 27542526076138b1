"""One training run: config → model → data → task → trainer, and nothing else."""

import logging
from contextlib import ExitStack
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.accelerators import CPUAccelerator
from omegaconf import DictConfig

from noah_lightning import console, run_files, runs
from noah_lightning.assembly import batch_split, make_callbacks, make_task, make_trainer
from noah_lightning.batch_split import not_exact
from noah_lightning.checkpoints import keep_only_last, remove_later
from noah_lightning.compiled import compiled
from noah_lightning.config import settings
from noah_lightning.cost import count_parameters
from noah_lightning.data import create_data
from noah_lightning.data.module import ImageDataModule
from noah_lightning.epoch_report import EpochReport
from noah_lightning.errors import ConfigError, RunFailed, UserError, one_line
from noah_lightning.faults import faults_told
from noah_lightning.loggers import close_loggers, make_loggers
from noah_lightning.processes import processes_started, rank
from noah_lightning.resume import check_split, keep_metrics, last_saved
from noah_lightning.run_lock import check_unfinished, locked
from noah_lightning.run_settings import check_settings
from noah_lightning.same_settings import check_same
from noah_lightning.stopping import Stopped, StopRequest
from noah_lightning.task import ClassificationTask, OptimizerSettings
from noah_lightning.task.mixing import check_even

log = logging.getLogger("noah_lightning")


def train(config: DictConfig, run_dir: Path, resume: bool = False, force: bool = False) -> runs.Results:
    """Train as the resolved configuration says, and leave everything about it in ``run_dir``.

    Everything is built before the run directory is claimed, so a mistake leaves nothing behind. With ``resume`` a run
    that is there already goes on from its last checkpoint, to the bit as if it had not been broken off; with
    ``force`` also where its batch is split otherwise now, which is not exact.

    Raises:
        UserError: whatever the user can mend.
        RunFailed: memory, the disk or a loading process gave out, or a loss was not finite.
        Stopped: a signal asked for it, and the state is saved.
    """
    check_settings(config)
    pl.seed_everything(config.seed, workers=True, verbose=False)
    model = runs.build_model(config)  # before the data, which may take long to look through
    data = create_data(config.data.name, **settings(config, "data", "name"))
    report, stop = EpochReport(), StopRequest()
    loggers = make_loggers(config, run_dir)
    callbacks = make_callbacks(config, run_dir, loggers, report, data, stop)
    trainer = make_trainer(config, run_dir, logger=loggers, callbacks=callbacks)
    if trainer.world_size != processes_started():  # each would train a model of its own
        raise ConfigError(
            f"{processes_started()} processes were started, but trainer.devices and trainer.num_nodes ask for "
            f"{trainer.world_size}; add trainer=ddp"
        )
    if config.trainer.sync_batchnorm and isinstance(trainer.accelerator, CPUAccelerator):
        raise ConfigError("trainer.sync_batchnorm=true works on GPUs only; leave it false")
    split = batch_split(config, data)
    task = make_task(config, model, split.in_step)
    if rank() == 0:  # the other processes are told by Lightning when the data is there
        _prepare(data, task)
    saved, results = None, None
    with ExitStack() as until_the_end:
        if rank() == 0:
            until_the_end.enter_context(locked(run_dir))
            _claim(run_dir, config, resume, force)
            until_the_end.enter_context(console.logging_to(run_dir / run_files.LOG))
        until_the_end.enter_context(stop.listening())
        until_the_end.callback(lambda: close_loggers(loggers, results))
        try:
            _announce(config, run_dir, task, data)
            if resume and (saved := last_saved(run_dir)):
                if not force:
                    check_split(run_dir, saved, split)
                if rank() == 0:
                    log.info("resumed  after %s steps, from %s", f"{saved.steps:,}", saved.path)
                    keep_metrics(run_dir, loggers, saved)
                    remove_later(saved.path)
                    if saved.split != split:
                        log.warning("forced   %s", not_exact(saved.split, split, shards=config.data.name == "packed"))
            if force and rank() == 0:
                runs.replace_config(run_dir, config, saved.steps if saved else 0)
            with compiled(task.model, config.trainer.compile), faults_told(config, data, run_dir):
                trainer.fit(task, datamodule=data, ckpt_path=saved.path if saved else None, weights_only=True)
            results = _conclude(run_dir, task, report)
            return results
        except Stopped as stopped:
            log.info("stopped  by %s after %s steps; noah resume %s", stopped, f"{trainer.global_step:,}", run_dir)
            raise
        except MisconfigurationException as error:
            raise ConfigError(one_line(error)) from error
        except SystemExit as exit_:  # how Lightning ends a run at Ctrl-C
            if trainer.interrupted:
                log.info("interrupted in epoch %d; noah resume %s", task.current_epoch + 1, run_dir)
                raise KeyboardInterrupt from exit_
            raise
        except (UserError, RunFailed) as error:
            console.write_to_log_only(str(error))  # the console is told where the error ends up
            raise


def _prepare(data: ImageDataModule, task: ClassificationTask) -> None:
    """Look through the data before the run directory is claimed."""
    data.prepare_data()
    data.setup("fit")
    if task.mixing is not None:
        assert data.train_dataset is not None
        check_even(min(data.batch_size, len(data.train_dataset)))  # a set below one batch is one batch


def _claim(run_dir: Path, config: DictConfig, resume: bool, force: bool) -> None:
    """Begin a run, or make sure that it is the one that goes on."""
    if resume and (run_dir / run_files.CONFIG).exists():
        check_same(run_dir, config, force)
        check_unfinished(run_dir)  # by another process, since somebody last looked
    else:
        runs.write_config(run_dir, config)


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


def _conclude(run_dir: Path, task: ClassificationTask, report: EpochReport) -> runs.Results:
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
        keep_only_last(run_dir / run_files.CHECKPOINTS)
    log.info("best     %s", report.best)
    if ema:
        log.info("best ema %s", report.best_ema)
    return results
