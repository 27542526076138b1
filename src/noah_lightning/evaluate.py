"""Validation of a finished run, from its directory alone."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from noah_lightning import runs
from noah_lightning.config import override, settings
from noah_lightning.data import create_data
from noah_lightning.task.accuracy import Accuracy
from noah_lightning.train import make_task, make_trainer


def evaluate(run_dir: Path, checkpoint: str = "best", overrides: Sequence[str] = ()) -> Accuracy:
    """Accuracy of the run's ``best`` or ``last`` checkpoint on its validation set.

    ``overrides`` such as ``data.root=/elsewhere`` change the recorded configuration for this evaluation only.

    Raises:
        UserError: no run there, a checkpoint that does not fit, missing data.
    """
    config = override(runs.read_config(run_dir), overrides)
    model = runs.load_model(run_dir, config, checkpoint)
    data = create_data(config.data.name, **settings(config, "data", "name"))
    task = make_task(config, model)
    with tempfile.TemporaryDirectory() as nowhere:  # an evaluation leaves nothing in the run directory
        trainer = make_trainer(config, Path(nowhere), logger=False, enable_checkpointing=False)
        trainer.validate(task, datamodule=data, verbose=False)
    assert task.validated is not None
    return task.validated
