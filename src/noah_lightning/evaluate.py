"""Validation of a finished run or a converted model, from its directory."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from noah_lightning.callbacks.failures import failures_in_one_line
from noah_lightning.config.schema import OptimizerSettings, ScheduleSettings
from noah_lightning.data import create_data
from noah_lightning.models.classifier import compiled
from noah_lightning.task import ClassificationTask, check_objective, make_objective
from noah_lightning.task.objective import Score
from noah_lightning.tools.trained import load_trained
from noah_lightning.train import make_trainer

HERE = ("trainer.devices=1", "trainer.num_nodes=1", "trainer.strategy=auto")  # in this process


def evaluate(folder: Path, checkpoint: str = "best", overrides: Sequence[str] = (), ema: bool = False) -> Score:
    """Accuracy, or mean average precision, of a run's ``best`` or ``last`` checkpoint, or of a converted model.

    Runs in a single process; the counts are the same as those of a training with several.

    Args:
        folder: run directory, or folder written by ``noah convert``.
        checkpoint: ``best`` or ``last``.
        overrides: change the recorded configuration for this evaluation, such as ``data.root=/elsewhere``. A
            converted model has the configuration of its row, for which ``data=imagefolder`` is possible too.
        ema: evaluate the average of the weights, as in :func:`load_model`.

    Raises:
        UserError: neither a run nor a converted model, weights that do not fit, or missing data.
        RunFailed: out of memory, or a DataLoader worker died.
    """
    config, model = load_trained(folder, checkpoint, [*overrides, *HERE], ema)
    data = create_data(**config.data.arguments())
    check_objective(config.recipe, data.multilabel, config.data.name)
    task = ClassificationTask(  # nothing is trained
        model,
        OptimizerSettings(name="sgd", lr=0.0),
        ScheduleSettings(),
        channels_last=config.trainer.channels_last,
        objective=make_objective(config.recipe),
    )
    with tempfile.TemporaryDirectory() as nowhere:  # an evaluation leaves nothing in the run directory
        trainer = make_trainer(config, Path(nowhere), logger=False, enable_checkpointing=False)
        # Compiled if the run was, because other rounding can change the counts.
        with compiled(model, config.trainer.compile), failures_in_one_line(config, data, folder, trainer):
            try:
                trainer.validate(task, datamodule=data, verbose=False)
            except SystemExit as exit_:  # raised by Lightning on Ctrl-C
                raise (KeyboardInterrupt if trainer.interrupted else exit_) from None
    assert task.validated is not None
    return task.validated
