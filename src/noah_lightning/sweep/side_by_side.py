"""``hydra/launcher=side_by_side``: trains the heads of all jobs of a sweep in one process, on a frozen backbone.

The jobs that share backbone, data and batches form a group. Features of the backbone are computed once and stored, or
else once for each batch. With ``recipe.optimizer.lr_choices`` every setting first tries each of them on a held-out
part of the training images, with its first seed. What a sweep needs to resume is in ``.side_by_side/`` of its folder.
"""

import copy
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.fabric import Fabric
from omegaconf import DictConfig

from noah_lightning.callbacks.checkpoints import read_checkpoint
from noah_lightning.config.parsing import shown
from noah_lightning.config.recorded import flat
from noah_lightning.config.schema import RunConfig
from noah_lightning.data import create_data
from noah_lightning.data.datamodule import ImageDataModule
from noah_lightning.distributed.signals import StopRequest
from noah_lightning.errors import ConfigError, RunFailed, UserError, WeightsError, count
from noah_lightning.loggers import console
from noah_lightning.loggers.console import log
from noah_lightning.models.classifier import build_model
from noah_lightning.models.cost import count_parameters
from noah_lightning.models.feature_store import FeatureStore, fingerprint, key_of
from noah_lightning.models.frozen import freeze, warn_of_random_features
from noah_lightning.run_dir import CONFIG
from noah_lightning.sweep.job import make_ready
from noah_lightning.sweep.launchers import Outcomes
from noah_lightning.sweep.plan import Job
from noah_lightning.sweep.probe_group import Group, Member
from noah_lightning.sweep.probes import Progress
from noah_lightning.task import check_objective

FOLDER = ".side_by_side"
# Settings that would take a process of their own, with the values that are supported.
SUPPORTED: dict[str, tuple[Any, ...]] = {
    "model.freeze": (True,),
    "trainer.devices": (1, "auto"),
    "trainer.num_nodes": (1,),
    "trainer.precision": ("32-true", "32", 32, "bf16-mixed", "bf16"),
    "trainer.accumulate_grad_batches": (1,),
    "trainer.limit_train_batches": (None,),
    "trainer.limit_val_batches": (None,),
    "trainer.nonfinite": ("stop",),
    "trainer.compile": (False,),
    "recipe.ema": (None,),
    "recipe.mixing.mixup": (0,),
    "recipe.mixing.cutmix": (0,),
}


def check_supported(config: RunConfig) -> None:
    """Raise ConfigError for settings with which heads cannot be trained side by side."""
    for key, value in flat(config.model_dump()).items():
        supported = SUPPORTED.get(key, (value,))
        if value not in supported:
            raise ConfigError(
                f"hydra/launcher=side_by_side needs {key}={shown(supported[0])}, not {shown(value)}; "
                "hydra/launcher=local trains the jobs one by one"
            )


class SideBySideSweep:
    """Trains ``sweep.jobs`` heads at a time, or all of them, on one device.

    Args:
        config: of the sweep, with Hydra's node.
        options: settings of the launcher, ``SideBySideConf``.
    """

    def __init__(self, config: DictConfig, options: Mapping[str, Any]) -> None:
        self.config, self.options = config, options
        self.folder = Path(config.hydra.sweep.dir) / FOLDER
        self.stop = StopRequest()
        self._data: dict[str, tuple[ImageDataModule, str]] = {}

    def run(self, jobs: Iterator[Job]) -> Outcomes:
        """Train all jobs; yields each as soon as it has ended."""
        console.start_logging()
        groups: dict[str, Group] = {}
        with self.stop.listening():
            progress = Progress()
            for number, job in enumerate(jobs):
                if progress.due():
                    log.info("%s built", count(number, "model"))
                try:
                    self._add(job, groups)
                except UserError as error:
                    yield job, error
            for group in groups.values():
                yield from self._run_group(group)

    def _add(self, job: Job, groups: dict[str, Group]) -> None:
        """Build the model of a job, and add its head to the group that reads the same inputs."""
        config = job.config
        check_supported(config)
        pl.seed_everything(config.seed, workers=True, verbose=False)  # as train.train does
        model = build_model(config)
        parameters, head = count_parameters(model), freeze(model)
        data, images = self._data_of(config)
        key = key_of(model, head, config, images)
        name = f"{key} {config.trainer} {config.recipe.batch_size} {config.recipe.loss}"
        if name not in groups:
            warn_of_random_features(config.model)
            trainer: Any = config.trainer
            fabric = Fabric(accelerator=trainer.accelerator, devices=1, precision=trainer.precision)
            prefix = next(name for name, module in model.named_modules() if module is head)
            model.to(fabric.device).eval()
            groups[name] = Group(key, model, prefix, data, fabric, self.folder, self.stop)
        groups[name].members.append(Member(job, config, copy.deepcopy(head), parameters))

    def _data_of(self, config: RunConfig) -> tuple[ImageDataModule, str]:
        """Data module and fingerprint of its images, once for all jobs with the same data."""
        settings = str(config.data)
        if settings not in self._data:
            data = create_data(**config.data.arguments())
            check_objective(config.recipe, data.multilabel, config.data.name)
            data.prepare_data()
            data.setup("fit")
            self._data[settings] = data, fingerprint(data)
        return self._data[settings]

    def _run_group(self, group: Group) -> Outcomes:
        options = self.options
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            group.store(FeatureStore(Path(options["store"]), int(options["store_gb"] * 1e9)))
        except (UserError, RunFailed) as error:
            for member in group.members:
                yield member.job, error
            return
        new = group.members
        for path in sorted(self.folder.glob(f"{group.key}-*.state")):
            saved, members = self._saved(path, group, new)
            new = [member for member in new if member not in members]
            if members:
                yield from group.train(members, saved, path)
        at_a_time, waiting = self.config.sweep.jobs, iter(new)
        while chunk := list(islice(waiting, at_a_time)):
            failed = group.choose_learning_rates(chunk, options["holdout"], at_a_time)
            for member, reason in failed:
                yield member.job, reason
                chunk.remove(member)
            for member in chunk:
                if self.config.sweep.resume:
                    make_ready(member.config, member.job.run_dir, str(member.job))
            if chunk:
                yield from group.train(chunk, None, self.folder / f"{group.key}-{chunk[0].job.number}.state")

    def _saved(self, path: Path, group: Group, members: list[Member]) -> tuple[dict[str, Any], list[Member]]:
        """The state in a file, and the members that resume from it."""
        try:
            saved = read_checkpoint(path)
        except WeightsError as error:
            log.warning("%s; its heads restart from scratch", error)
            return {}, []
        inside = [member for member in members if str(member.job.number) in saved["probes"]]
        group.choose_learning_rates(inside, self.options["holdout"], self.config.sweep.jobs)  # recorded before
        for member in inside:
            make_ready(member.config, member.job.run_dir, str(member.job))  # sets another attempt aside
        return saved, [member for member in inside if (member.job.run_dir / CONFIG).exists()]
