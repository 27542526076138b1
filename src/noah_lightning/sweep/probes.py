"""Training of several heads side by side on the inputs that one frozen backbone gives them.

Each head is trained as ``noah train`` with ``model.freeze=true`` would train it: same order of the images, same
random numbers, losses and learning rates. All heads of a batch share the reading or computing of its features.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from noah_lightning.callbacks.progress import Best
from noah_lightning.config.schema import RunConfig
from noah_lightning.data.loader import seed_training_step
from noah_lightning.loggers.console import duration, log
from noah_lightning.sweep.sources import Batch, Inputs, Source
from noah_lightning.task import learning_rate, make_objective, make_optimizer, scaled_to
from noah_lightning.task.metrics import Predictions
from noah_lightning.task.objective import Score

TIMED = 20  # batches whose duration is measured, after the first one
EVERY = 25.0  # seconds between two lines of progress


class Progress:
    """Tells when a line of progress is due: at the first call after EVERY seconds without one."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def due(self) -> bool:
        due = time.perf_counter() - self._last > EVERY
        if due:
            self._last = time.perf_counter()
        return due


@dataclass
class Probe:
    """One head in training, by ``config``.

    Attributes:
        best, best_head: the best epoch so far, and the weights of the head in it.
        predicted: labels and predictions of the best epoch, as of :class:`~noah_lightning.task.metrics.Predictions`.
        metrics: everything logged so far, with its step.
        seconds, timed: duration of the measured steps, and their number of images.
    """

    config: RunConfig
    head: nn.Module
    fabric: Fabric
    best: Best = field(default_factory=Best)
    best_head: dict[str, Tensor] = field(default_factory=dict)
    predicted: tuple[Tensor, Tensor] | None = None
    metrics: list[tuple[dict[str, float], int]] = field(default_factory=list)
    seconds: float = 0.0
    timed: int = 0

    def __post_init__(self) -> None:
        recipe = self.config.recipe
        self.head.to(self.fabric.device).train()
        self.settings = scaled_to(recipe.optimizer, recipe.batch_size)
        self.optimizer = make_optimizer(self.head, self.settings)
        self.objective = make_objective(recipe)
        self.train_score = self.objective.training().to(self.fabric.device)
        self.val_score = self.objective.validation().to(self.fabric.device)

    def step(self, inputs: Inputs, labels: Tensor, now: float) -> None:
        """One optimizer step at time ``now``, in epochs."""
        trainer = self.config.trainer
        self.rate = learning_rate(now, self.settings.lr, trainer.max_epochs, self.config.recipe.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate
        with self.fabric.autocast():
            logits = self.head(*inputs)
            loss = self.objective.loss(logits, labels)
        loss.backward()
        if trainer.gradient_clip_val:
            nn.utils.clip_grad_norm_(self.head.parameters(), trainer.gradient_clip_val)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.train_score.update(logits.detach(), labels, loss.detach() * len(labels))

    @torch.no_grad()
    def validate(self, inputs: Inputs, labels: Tensor, predictions: Predictions) -> None:
        with self.fabric.autocast():
            logits = self.head(*inputs).float()
        self.val_score.update(logits, labels, self.objective.loss_sum(logits, labels))
        predictions.update(logits, labels)

    def end_epoch(self, epoch: int, steps: int, predictions: Predictions | None) -> bool:
        """Log the epoch, and keep it if it is the best; False if its loss was not finite."""
        train = self.train_score.compute()
        row: dict[str, float] = {"train/lr": self.rate}
        row |= {f"train/{name}": getattr(train, name) for name in self.objective.train_metrics}
        self.train_score.reset()
        if predictions is not None:
            score: Score = self.val_score.compute()
            self.val_score.reset()
            row |= {f"val/{name}": value for name, value in score.metrics().items()} | {"val/images": score.images}
            before = self.best.epoch
            self.best.update(score, epoch + 1)
            if self.best.epoch != before:
                self.best_head = {key: tensor.cpu().clone() for key, tensor in self.head.state_dict().items()}
                self.predicted = predictions.compute()
        self.metrics.append(({**row, "epoch": epoch}, steps - 1))
        return math.isfinite(train.loss)

    def state(self) -> dict[str, Any]:
        """All that changes, as plain containers of tensors and numbers."""
        score = self.best.score
        return {
            "head": self.head.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "counts": self.train_score.counts(),
            "best": [self.best.epoch, score and tuple(score)],
            "best_head": self.best_head,
            "predicted": list(self.predicted or ()),
            "metrics": [[row, step] for row, step in self.metrics],
            "seconds": self.seconds,
            "timed": self.timed,
        }

    def load(self, state: dict[str, Any]) -> None:
        self.head.load_state_dict(state["head"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.train_score.set_counts(state["counts"])
        epoch, values = state["best"]
        self.best = Best(values and self.objective.score(*values), epoch)
        self.best_head, self.predicted = state["best_head"], tuple(state["predicted"]) or None
        self.metrics = [(row, step) for row, step in state["metrics"]]
        self.seconds, self.timed = state["seconds"], state["timed"]


class SideBySide:
    """Trains ``probes``, which share batch size, epochs and data, on the batches of ``source``.

    Args:
        fabric: device and precision.
        after_step: called after each step but the last one of an epoch, and after each epoch; may raise to stop.
        after_epoch: called for each probe after each epoch.

    Attributes:
        epoch, batch: position, the number of complete epochs and of batches done in the current one.
        failed: probes whose loss was not finite; they are not trained further.
    """

    def __init__(
        self,
        probes: Sequence[Probe],
        source: Source,
        fabric: Fabric,
        after_step: Callable[[], None] = lambda: None,
        after_epoch: Callable[[Probe], None] = lambda probe: None,
    ) -> None:
        self.probes, self.source, self.fabric = list(probes), source, fabric
        self.after_step, self.after_epoch = after_step, after_epoch
        self.epoch = self.batch = 0
        self.failed: list[Probe] = []

    def run(self, title: str) -> None:
        """Train from the current position to the end; ``title`` names the heads in the lines of progress."""
        trainer = self.probes[0].config.trainer
        self._started, self._first, self._progress = time.perf_counter(), (self.epoch, self.batch), Progress()
        while self.epoch < trainer.max_epochs and self.probes:
            self._train_epoch(title)
            due = (self.epoch + 1) % trainer.check_val_every_n_epoch == 0
            self._end_epoch(title, self._validate(title) if due else None)
            self.after_step()

    def _train_epoch(self, title: str) -> None:
        batches, seed = self.source.batches(), self.probes[0].config.data.seed
        for inputs, labels in self.source.train(self.epoch, self.batch):
            inputs, labels = self._on_device(inputs, labels)
            now = self.epoch + self.batch / batches
            for probe in self.probes:
                seed_training_step(seed, 0, self.epoch, self.batch)  # the same dropout as in a run of its own
                self._step(probe, inputs, labels, now)
                if self._progress.due():
                    done = f"epoch {self.epoch + 1}  batch {self.batch + 1}/{batches}"
                    log.info("%s  %s  %s left", title, done, self._left())
            self.batch += 1
            if self.batch < batches:
                self.after_step()

    def _validate(self, title: str) -> list[Predictions]:
        predictions = [Predictions(probe.objective.predict) for probe in self.probes]
        for probe in self.probes:
            probe.head.eval()
        for inputs, labels in self.source.validation():
            inputs, labels = self._on_device(inputs, labels)
            for probe, kept in zip(self.probes, predictions, strict=True):
                probe.validate(inputs, labels, kept)
                if self._progress.due():
                    log.info("%s  epoch %d  validation", title, self.epoch + 1)
        for probe in self.probes:
            probe.head.train()
        return predictions

    def _end_epoch(self, title: str, predictions: list[Predictions] | None) -> None:
        steps = (self.epoch + 1) * self.source.batches()
        for i, probe in enumerate(list(self.probes)):
            if probe.end_epoch(self.epoch, steps, predictions[i] if predictions else None):
                self.after_epoch(probe)
            else:
                self.failed.append(probe)
                self.probes.remove(probe)
        self.epoch, self.batch = self.epoch + 1, 0
        epochs = (self.probes or self.failed)[0].config.trainer.max_epochs
        if scored := [probe for probe in self.probes if probe.best.score]:
            leader = max(scored, key=lambda probe: probe.best.score.rating)  # type: ignore[union-attr]
            best = f"best so far {leader.config.head.name} {leader.best.score.brief}  "  # type: ignore[union-attr]
            log.info("%s  epoch %d/%d  %s%s left", title, self.epoch, epochs, best, self._left())

    def _on_device(self, inputs: Inputs, labels: Tensor) -> Batch:
        device = self.fabric.device
        return tuple(each.to(device, non_blocking=True) for each in inputs), labels.to(device, non_blocking=True)

    def _step(self, probe: Probe, inputs: Inputs, labels: Tensor, now: float) -> None:
        """One step, whose duration is measured for TIMED batches; the first one counts only if it is the only one."""
        alone = self.source.batches() * probe.config.trainer.max_epochs == 1
        if (now == 0 and not alone) or probe.timed >= TIMED * len(labels):
            return probe.step(inputs, labels, now)
        started = self._clock()
        probe.step(inputs, labels, now)
        probe.seconds += self._clock() - started
        probe.timed += len(labels)

    def _clock(self) -> float:
        if self.fabric.device.type == "cuda":  # which works behind the program
            torch.cuda.synchronize(self.fabric.device)
        return time.perf_counter()

    def _left(self) -> str:
        """Time left, at the pace of this process so far."""
        batches, epochs = self.source.batches(), (self.probes or self.failed)[0].config.trainer.max_epochs
        begun = self._first[0] * batches + self._first[1]
        done = self.epoch * batches + self.batch
        pace = (time.perf_counter() - self._started) / max(1, done - begun)
        return duration(pace * (epochs * batches - done))
