"""Jobs of a sweep, composed and checked before training starts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig, OmegaConf, open_dict

from noah_lightning.config.choices import Group, PositiveInt, Text
from noah_lightning.config.compose import CONFIG_ERRORS, explain, from_hydra
from noah_lightning.config.plugins import load_plugins
from noah_lightning.config.schema import RunConfig
from noah_lightning.errors import ConfigError, HeadSettingError


class SweepSettings(Group):
    """Group ``sweep`` of the configuration, which is not recorded with the runs."""

    resume: bool
    dir: Text
    jobs: PositiveInt | None
    trials: PositiveInt | None


@dataclass
class Job:
    """One run of a sweep."""

    number: int  # from 0, in the order of the command
    changes: list[str]  # overrides in which the jobs differ
    overrides: list[str]  # all overrides, for Hydra
    composed: DictConfig = field(repr=False)  # configuration including Hydra's node
    config: RunConfig = field(repr=False)

    @cached_property
    def run_dir(self) -> Path:
        return Path(self.composed.hydra.sweep.dir, self.composed.hydra.sweep.subdir)

    def __str__(self) -> str:
        return f"{self.number}  {' '.join(self.changes)}".rstrip()


Compose = Callable[[int, Sequence[str], Sequence[str]], Job]  # a job's number, overrides and changes


def compose_job(
    loader: ConfigLoader, master: DictConfig, number: int, overrides: Sequence[str], changes: Sequence[str]
) -> Job:
    """Compose a job from ``master``, the configuration of the sweep, and ``overrides``.

    Raises:
        UserError: an invalid override.
    """
    try:
        composed = loader.load_sweep_config(master, list(overrides))
        with open_dict(composed):
            composed.hydra.job.num, composed.hydra.job.id = number, str(number)
        config = from_hydra(OmegaConf.masked_copy(composed, [key for key in map(str, composed) if key != "hydra"]))
    except CONFIG_ERRORS as error:
        raise explain(error, overrides) from error
    if not isinstance(config.trainer.devices, int | str):
        raise ConfigError(
            "a sweep assigns the GPUs: set trainer.devices to their number, and CUDA_VISIBLE_DEVICES to their list"
        )
    return Job(number, list(changes), list(overrides), composed, config)


class HeadCheck:
    """Check whether the heads of jobs fit their models, once for each combination of model, head and data."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def __call__(self, job: Job) -> str:
        """Why the head of a job cannot be built, or "".

        Raises:
            UserError: another mistake, such as an unknown model.
        """
        import torch

        from noah_lightning.data import create_data
        from noah_lightning.models.classifier import build_model
        from noah_lightning.task import check_options

        load_plugins(job.config.plugins)
        check_options(job.config.recipe.optimizer)
        config = job.config.replace("model", pretrained=False, weights=None)
        kind = str((config.model, config.head, config.data))
        if kind not in self._known:
            try:
                with torch.device("meta"):  # takes no memory
                    build_model(config)
                create_data(**config.data.arguments())  # reads no files
                self._known[kind] = ""
            except HeadSettingError as error:
                self._known[kind] = str(error)
        return self._known[kind]
