"""Heads of a sweep that read the same features of one frozen backbone: stored features, learning rates, training."""

import copy
import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from noah_lightning.atomic_io import write_whole
from noah_lightning.config.recorded import flat
from noah_lightning.config.schema import RunConfig
from noah_lightning.data.datamodule import ImageDataModule, LabeledImages
from noah_lightning.data.subsets import Subset, hold_out
from noah_lightning.distributed.signals import Stopped, StopRequest
from noah_lightning.errors import RunFailed, UserError, count, one_line
from noah_lightning.loggers.console import log
from noah_lightning.models.feature_store import Features, FeatureStore
from noah_lightning.models.frozen import inputs_of_head
from noah_lightning.sweep.launchers import Outcomes
from noah_lightning.sweep.nearest import nearest_neighbors
from noah_lightning.sweep.plan import Job
from noah_lightning.sweep.probe_runs import ProbeRun
from noah_lightning.sweep.probes import Probe, SideBySide
from noah_lightning.sweep.sources import ComputedFeatures, Source, StoredFeatures

CHOSEN, REFERENCES = "learning_rates.json", "references.json"


@dataclass(eq=False)
class Member:
    """A job with its configuration, which has the chosen learning rate, and its head."""

    job: Job
    config: RunConfig
    head: nn.Module
    parameters: int  # of its model

    @property
    def setting(self) -> str:
        """Hash of all that determines the run, except for the seed and the learning rate."""
        settings = flat(self.config.model_dump())
        del settings["seed"], settings["recipe.optimizer.lr"]
        return sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


@dataclass
class Group:
    """Jobs whose heads read what ``model`` computes.

    Args:
        key: of the features in the store.
        model: with a head of its own, named ``prefix``, which is not used.
        folder: for what the group needs to resume.
    """

    key: str
    model: nn.Module
    prefix: str
    data: ImageDataModule
    fabric: Fabric
    folder: Path
    stop: StopRequest
    members: list[Member] = field(default_factory=list)
    stored: dict[str, Features] | None = None

    def features(self, images: Tensor) -> tuple[Tensor, ...]:
        """Inputs of a head for normalized images on the device; raises Stopped after a signal."""
        self._check_stop()
        with self.fabric.autocast():
            return tuple(each.float() for each in inputs_of_head(self.model, images))

    def store(self, store: FeatureStore) -> None:
        """Store the features, unless the training images are augmented, and classify by nearest neighbors."""
        augment = self.data.augment if hasattr(self.data.settings, "augment") else None
        if augment is not None and augment.enabled:
            log.info("features computed for every batch, as recipe.augment.enabled=true")
            return
        self.stored = store.get(self.key, self.data, lambda images: self.features(self._normalized(images)))
        path = self.folder / f"{self.key}-{REFERENCES}"
        if self.stored and not self.data.multilabel and not path.is_file():
            correct = nearest_neighbors(self.stored["train"], self.stored["val"], self.fabric.device)
            images = len(self.stored["val"])
            log.info(
                "k-NN     val top-1 %.3f %% (%s of %s), on pooled features", 100 * correct / images, correct, images
            )
            facts = {"knn": {"correct": correct, "images": images}, "features": store.facts(self.key)}
            _write_json(path, facts)

    def choose_learning_rates(
        self, members: Sequence[Member], share: float, at_a_time: int | None
    ) -> list[tuple[Member, RunFailed]]:
        """Give each setting the best of its choices, tried on a held-out ``share`` of the training images.

        At most ``at_a_time`` heads are in memory, but all choices of a setting; None: no limit.

        Returns:
            Members whose loss was not finite with any of their choices.
        """
        settings: dict[str, list[Member]] = {}
        for member in members:
            if member.config.recipe.optimizer.lr_choices:
                settings.setdefault(member.setting, []).append(member)
        path = self.folder / f"{self.key}-{CHOSEN}"
        chosen: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else {}
        waiting = iter([(setting, found[0]) for setting, found in settings.items() if setting not in chosen])
        most = max((len(found[0].config.recipe.optimizer.lr_choices) for found in settings.values()), default=1)
        chunk_size = max(1, at_a_time // most) if at_a_time else None
        while tried := dict(islice(waiting, chunk_size)):
            chosen |= self._best_rates(tried, share)
            _write_json(path, chosen)
        failed = []
        for setting, found in settings.items():
            if setting not in chosen:
                error = RunFailed("the loss is not finite with any of recipe.optimizer.lr_choices")
                failed += [(member, error) for member in found]
                continue
            log.info("rate     %g for %s", chosen[setting]["lr"], " ".join(found[0].job.changes))
            for member in found:
                member.config = _with_rate(member.config, chosen[setting]["lr"])
        return failed

    def _best_rates(self, tried: dict[str, Member], share: float) -> dict[str, dict[str, Any]]:
        """The best learning rate of each setting for which one is possible, with the ratings of all."""
        pairs = [(key, rate) for key in tried for rate in tried[key].config.recipe.optimizer.lr_choices]
        probes = [self._probe(tried[setting], rate) for setting, rate in pairs]
        loop = SideBySide(probes, self._source(share), self.fabric, after_step=self._check_stop)
        loop.run(f"learning rates of {count(len(tried), 'setting')}")
        best: dict[str, dict[str, Any]] = {}
        for setting, member in tried.items():
            ratings = {
                rate: probe.best.score.rating
                for (own, rate), probe in zip(pairs, probes, strict=True)
                if own == setting and probe.best.score and probe not in loop.failed
            }
            if ratings:
                rate = max(ratings, key=lambda rate: (ratings[rate], -rate))  # called at once
                best[setting] = {"lr": rate, "job": " ".join(member.job.changes), "ratings": ratings}
        return best

    def train(self, members: Sequence[Member], saved: dict[str, Any] | None, path: Path) -> Outcomes:
        """Train heads side by side, from a ``saved`` state or from their start; the state is saved in ``path``."""
        config, backbone = members[0].config, self._save_backbone()
        runs: dict[int, ProbeRun] = {}  # by the probe's id
        jobs: dict[int, Job] = {}
        with ExitStack() as until_the_end:
            for member in members:
                probe = self._probe(member)
                if saved:
                    probe.load(saved["probes"][str(member.job.number)])
                run = ProbeRun(probe, member.job.run_dir, self.prefix, member.parameters)
                try:
                    until_the_end.enter_context(run.locked())
                    run.begin()
                except UserError as error:
                    yield member.job, error
                    continue
                runs[id(probe)], jobs[id(probe)] = run, member.job
            probes = [run.probe for run in runs.values()]
            if not probes:
                return
            since = time.monotonic()

            def after_step() -> None:
                nonlocal since
                if self.stop.signal or time.monotonic() - since > 60 * config.checkpoint.every_minutes:
                    states = {str(jobs[id(probe)].number): probe.state() for probe in loop.probes}
                    state = {"epoch": loop.epoch, "batch": loop.batch, "probes": states}
                    write_whole(path, lambda file: torch.save(state, file))
                    since = time.monotonic()
                self._check_stop()

            source = self._source()
            loop = SideBySide(probes, source, self.fabric, after_step, lambda probe: runs[id(probe)].log_epoch())
            if saved:
                loop.epoch, loop.batch = saved["epoch"], saved["batch"]
            loop.run(count(len(probes), "head"))
            for probe in loop.failed:
                failure = RunFailed("the loss is not finite; try a smaller recipe.optimizer.lr")
                runs[id(probe)].fail(failure)
                yield jobs[id(probe)], failure
            trained = source.batches() * self.data.batch_size * config.trainer.max_epochs
            for probe in loop.probes:
                try:
                    results = runs[id(probe)].finish(backbone, self.data.class_names, trained)
                    yield jobs[id(probe)], results.score
                except (UserError, RunFailed) as error:  # such as of W&B
                    yield jobs[id(probe)], error
        path.unlink(missing_ok=True)

    def _probe(self, member: Member, rate: float | None = None) -> Probe:
        """The head of a member at its start, with another learning rate than that of its configuration."""
        config = member.config if rate is None else _with_rate(member.config, rate)
        return Probe(config, copy.deepcopy(member.head), self.fabric)

    def _source(self, share: float = 0.0) -> Source:
        """Batches of the training and validation images; with ``share`` both from the training images."""
        data, stored = self.data, self.stored
        if share:
            data, images = copy.copy(data), data.train_dataset
            assert images is not None
            kept, held_out = hold_out(images, share, data.seed, data.multilabel)
            data.train_dataset = Subset(images, kept)
            data.val_dataset = Subset(_unaugmented(data, images), held_out)
            stored = stored and {"train": stored["train"].subset(kept), "val": stored["train"].subset(held_out)}
        if stored:
            return StoredFeatures(data, stored)
        return ComputedFeatures(data, self._normalized, self.features)

    def _normalized(self, images: Tensor) -> Tensor:
        return self.data.on_device.normalize(images.to(self.fabric.device))

    def _save_backbone(self) -> Path:
        """The frozen part as a checkpoint, written once."""
        path = self.folder / f"{self.key}-backbone.ckpt"
        if not path.is_file():
            head = f"{self.prefix}."
            state = {
                f"model.{key}": tensor.cpu()
                for key, tensor in self.model.state_dict().items()
                if not key.startswith(head)
            }
            try:
                write_whole(path, lambda file: torch.save({"state_dict": state}, file))
            except OSError as error:
                raise RunFailed(f"{path} cannot be written ({one_line(error)})") from error
        return path

    def _check_stop(self) -> None:
        if self.stop.signal:
            raise Stopped(self.stop.signal)


def _unaugmented(data: ImageDataModule, images: LabeledImages) -> LabeledImages:
    """Training images prepared as validation images are; a part of them if ``data.holdout`` has divided them."""
    if isinstance(images, Subset):
        return Subset(data.without_augmentation(images.images), images.numbers)
    return data.without_augmentation(images)


def _write_json(path: Path, content: object) -> None:
    write_whole(path, lambda file: file.write(json.dumps(content, indent=1).encode()))


def _with_rate(config: RunConfig, rate: float) -> RunConfig:
    return config.replace("recipe", optimizer=config.recipe.optimizer.model_copy(update={"lr": rate}))
