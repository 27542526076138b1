"""Run directories of heads that are trained side by side: the same files as those of ``noah train``."""

import os
import shutil
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path

import torch
from torch import Tensor

from noah_lightning.atomic_io import write_whole
from noah_lightning.config.results import Results
from noah_lightning.config.schema import RunConfig
from noah_lightning.errors import RunFailed, count, one_line
from noah_lightning.loggers.factory import close_loggers, make_loggers
from noah_lightning.loggers.metrics_csv import MetricsFile
from noah_lightning.models.weights import BACKBONE, WITHOUT_BACKBONE
from noah_lightning.run_dir import CHECKPOINTS, CONFIG, LOG, RunDir
from noah_lightning.sweep.probes import Probe


class ProbeRun:
    """The run directory of a probe.

    Args:
        probe: the head in training, at its start or with the state that it resumes from.
        path: run directory.
        prefix: name of the head within its model.
        parameters: of the model.
    """

    def __init__(self, probe: Probe, path: Path, prefix: str, parameters: int) -> None:
        self.probe, self.run, self.prefix, self.parameters = probe, RunDir(path), prefix, parameters
        self.metrics = MetricsFile(path)

    def locked(self) -> AbstractContextManager[None]:
        """Lock the run directory within this context."""
        return self.run.locked()

    def begin(self) -> None:
        """Record the configuration, or continue after the epochs that have been recorded."""
        if not (self.run.path / CONFIG).exists():
            self.run.claim(self.probe.config)
        config: RunConfig = self.probe.config
        if self.probe.metrics:
            self.metrics.resume(len(self.probe.metrics))
            self._say(f"resumed  after {count(len(self.probe.metrics), 'epoch')}")
        else:
            self._say(f"model    {config.model.name}, head {config.head.name}, {self.parameters:,} parameters")
            self._say(f"rate     {self.probe.settings.lr:g}, {config.recipe.optimizer.name}")

    def log_epoch(self) -> None:
        """Record the latest epoch."""
        row, step = self.probe.metrics[-1]
        self.metrics.log_metrics(row, step)
        self.metrics.save()
        best = f"  best {self.probe.best}" if self.probe.best.score else ""  # none before the first validation
        self._say(f"epoch {row['epoch'] + 1:.0f}  train loss {row['train/loss']:.4f}{best}")

    def finish(self, backbone: Path, class_names: list[str], images: int) -> Results:
        """Write checkpoints, predictions and results.

        Args:
            backbone: checkpoint of the frozen part, which is linked into the run directory.
            class_names: in label order.
            images: number of images that the head was trained on.

        Raises:
            RunFailed: a file cannot be written.
        """
        probe, folder = self.probe, self.run.path / CHECKPOINTS
        assert probe.best.score is not None, "every run validates at least once"
        assert probe.predicted is not None
        labels, predicted = probe.predicted
        arrays = {"labels": labels.int().numpy(), probe.objective.prediction: predicted.numpy()}
        try:
            self.run.write_predictions(class_names, **arrays)
            folder.mkdir(exist_ok=True)
            _link(backbone, folder / BACKBONE)
            self._save(folder / "best.ckpt", probe.best_head)
            self._save(folder / "last.ckpt", probe.head.state_dict())
        except OSError as error:
            raise RunFailed(f"{self.run.path} cannot be written ({one_line(error)})") from error
        pace = probe.seconds / probe.timed  # seconds per image
        results = Results(
            parameters=self.parameters,
            epochs=len(probe.metrics),
            best_epoch=probe.best.epoch,
            images=probe.best.score.images,
            train_seconds=pace * images,
            images_per_second=1 / pace,
            peak_memory=torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
            **probe.best.score.results(),
        )
        self._replay(results)
        self.run.write_results(results)
        self._say(f"best     {probe.best}")
        return results

    def fail(self, error: Exception) -> None:
        self._say(f"error: {error}")

    def _save(self, path: Path, head: dict[str, Tensor]) -> None:
        weights = {f"model.{self.prefix}.{name}": tensor.cpu() for name, tensor in head.items()}
        write_whole(path, lambda file: torch.save({"state_dict": weights, WITHOUT_BACKBONE: True}, file))

    def _replay(self, results: Results) -> None:
        """Log everything to the other logger, at the end, because W&B has one run at a time in a process."""
        for logger in make_loggers(self.probe.config, self.run.path)[1:]:
            for row, step in self.probe.metrics:
                logger.log_metrics(row, step)
            logger.finalize("success")
            close_loggers([logger], results)

    def _say(self, line: str) -> None:
        with (self.run.path / LOG).open("a", encoding="utf-8") as file:
            file.write(f"{datetime.now():%Y-%m-%d %H:%M:%S} {line}\n")


def _link(source: Path, target: Path) -> None:
    """A hard link, which takes no space; a copy on file systems without them."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
