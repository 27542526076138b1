"""One training run: config → model → data → task → trainer, and nothing else."""

import logging
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger, WandbLogger
from omegaconf import DictConfig
from torch import nn

from noah_lightning import console, runs
from noah_lightning.checks import whole_number
from noah_lightning.config import settings, typed
from noah_lightning.data import create_data
from noah_lightning.data.module import ImageDataModule
from noah_lightning.errors import ConfigError, UserError, one_line
from noah_lightning.loggers import make_loggers
from noah_lightning.task import ClassificationTask, OptimizerSettings, ScheduleSettings

log = logging.getLogger("noah_lightning")


def train(config: DictConfig, run_dir: Path) -> runs.Results:
    """Train as the resolved configuration says, and leave everything about it in ``run_dir``.

    Everything is built before the run directory is claimed, so a mistake leaves nothing behind.

    Raises:
        UserError: whatever the user can mend.
    """
    _check_budget(config)
    pl.seed_everything(config.seed, workers=True, verbose=False)
    model = runs.build_model(config)  # before the data, which may take long to look through
    data = create_data(config.data.name, **settings(config, "data", "name"))
    task = make_task(config, model)
    report = console.EpochReport()
    loggers = make_loggers(config, run_dir)
    callbacks = [console.progress(config.trainer.log_every_n_steps), report, *_checkpoints(run_dir)]
    trainer = make_trainer(config, run_dir, logger=loggers, callbacks=callbacks)
    if (
        trainer.world_size > 1
    ):  # the ranks would claim one run directory, and validation would count some images twice
        raise ConfigError(
            f"training on {trainer.world_size} devices at once is not supported yet; use trainer.devices=1"
        )
    data.prepare_data()
    data.setup("fit")
    runs.write_config(run_dir, config)
    log_file = console.log_to(run_dir / runs.LOG)
    try:
        _announce(config, run_dir, task, data)
        trainer.fit(task, datamodule=data)
        return _conclude(run_dir, task, report)
    except MisconfigurationException as error:
        raise ConfigError(one_line(error)) from error
    except SystemExit as stop:  # how Lightning ends a run at Ctrl-C
        if trainer.interrupted:
            log.info("interrupted in epoch %d; what there is so far lies in %s", task.current_epoch + 1, run_dir)
            raise KeyboardInterrupt from stop
        raise
    except UserError as error:
        console.write_to_log_only(log_file, str(error))  # the console is told where the error ends up
        raise
    finally:
        _close(loggers, failed=not trainer.state.finished)
        console.stop_log(log_file)


def make_task(config: DictConfig, model: nn.Module) -> ClassificationTask:
    """The training task of a recipe, around a model.

    Raises:
        ConfigError: recipe settings out of their range.
    """
    optimizer = typed(OptimizerSettings, config, "recipe.optimizer")
    schedule = typed(ScheduleSettings, config, "recipe.schedule")
    return ClassificationTask(model, optimizer, schedule, config.recipe.label_smoothing)


def make_trainer(config: DictConfig, run_dir: Path, **arguments: Any) -> pl.Trainer:
    """Lightning's trainer with the settings of ``config.trainer``.

    Raises:
        ConfigError: settings Lightning does not accept.
    """
    try:
        return pl.Trainer(
            **settings(config, "trainer"),
            default_root_dir=run_dir,
            enable_model_summary=False,
            enable_progress_bar=console.on_terminal(),
            **arguments,
        )
    except (MisconfigurationException, TypeError, ValueError) as error:
        raise ConfigError(f"trainer: {one_line(error)}") from error


def _checkpoints(run_dir: Path) -> list[ModelCheckpoint]:
    """``best`` and ``last``; apart, because Lightning's ``save_last`` waits for the next best one."""
    folder = run_dir / runs.CHECKPOINTS
    return [
        ModelCheckpoint(folder, "best", monitor="val/top1", mode="max", enable_version_counter=False),
        ModelCheckpoint(folder, "last", enable_version_counter=False),
    ]


def _check_budget(config: DictConfig) -> None:
    """Refuse what would be found out only after the last epoch: a run that never trains or never validates."""
    trainer = config.trainer
    whole_number("seed", config.seed, low=0, high=2**32 - 1)
    whole_number("trainer.max_epochs", trainer.max_epochs, low=1, high=10**6)
    whole_number("trainer.check_val_every_n_epoch", trainer.check_val_every_n_epoch, 1, trainer.max_epochs)
    whole_number("trainer.log_every_n_steps", trainer.log_every_n_steps, low=1)
    for key in ("limit_train_batches", "limit_val_batches"):
        if trainer[key] == 0:
            raise ConfigError(f"trainer.{key}=0 leaves nothing to do; give a number of batches, or null for all")


def _announce(config: DictConfig, run_dir: Path, task: ClassificationTask, data: ImageDataModule) -> None:
    count = parameter_count(task.model)
    log.info("run      %s", run_dir)
    log.info("model    %s, head %s, %s parameters", config.model.name, config.head.name, f"{count:,}")
    log.info("data     %s, %d classes, batch %d", config.data.name, data.num_classes, data.batch_size)


def _conclude(run_dir: Path, task: ClassificationTask, report: console.EpochReport) -> runs.Results:
    assert report.best is not None, "every run validates at least once"
    results = runs.Results(
        parameters=parameter_count(task.model),
        epochs=task.current_epoch,
        best_epoch=report.best_epoch,
        correct=report.best.correct,
        correct_top5=report.best.correct_top5,
        images=report.best.images,
        train_seconds=report.train_seconds,
        images_per_second=report.images_per_second,
    )
    runs.write_results(run_dir, results)
    log.info("best     epoch %d  val %s", report.best_epoch, report.best)
    return results


def parameter_count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _close(loggers: list[Logger], failed: bool) -> None:
    """End the W&B run here, so that the next job of a sweep starts its own."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish(exit_code=int(failed))
