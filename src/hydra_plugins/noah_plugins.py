"""Hydra plugins of noah_lightning: sweeper and launchers with their settings, and the resolvers used in ``conf/``."""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import ListConfig, OmegaConf

from noah_lightning.sweep import clusters, launchers, sweeper

# Hydra only accepts classes defined in this module.


class NoahSweeper(sweeper.Sweeper):
    """``hydra/sweeper=noah``."""


class LocalLauncher(launchers.LocalLauncher):
    """``hydra/launcher=local``."""


class SideBySideLauncher(launchers.SideBySideLauncher):
    """``hydra/launcher=side_by_side``."""


class SlurmLauncher(clusters.SlurmLauncher):
    """``hydra/launcher=slurm``."""


class RayLauncher(clusters.RayLauncher):
    """``hydra/launcher=ray``."""


@dataclass
class SweeperConf:
    _target_: str = "hydra_plugins.noah_plugins.NoahSweeper"
    max_batch_size: int | None = None  # jobs passed to a launcher of another package at a time; null: all
    params: dict[str, str] | None = field(default_factory=dict)  # settings to sweep, such as those of a preset
    show: bool = False  # print the configurations of the jobs: -m --cfg job


@dataclass
class LocalConf:
    _target_: str = "hydra_plugins.noah_plugins.LocalLauncher"


@dataclass
class SideBySideConf:
    _target_: str = "hydra_plugins.noah_plugins.SideBySideLauncher"
    store: str = "runs/.features"  # folder of the features
    store_gb: float = 20  # gigabytes that it may take; the least recently used features are removed for new ones
    holdout: float = 0.1  # share of the training images on which recipe.optimizer.lr_choices are compared


@dataclass
class SlurmConf:
    _target_: str = "hydra_plugins.noah_plugins.SlurmLauncher"
    partition: str | None = None  # null: the cluster's default
    account: str | None = None
    timeout_min: int = 1440  # time limit of a job
    cpus_per_task: int = 8  # DataLoader workers and the training loop
    mem_gb: float | None = None  # per node; null: the cluster's default
    gpus_per_node: int | None = None  # null: one per task if the devices are GPUs
    max_jobs: int = 64  # jobs running at the same time
    setup: list[str] = field(default_factory=list)  # shell lines before each job, such as [module load cuda]
    # further options of sbatch: +hydra.launcher.additional.qos=high
    additional: dict[str, Any] = field(default_factory=dict)


@dataclass
class RayConf:
    _target_: str = "hydra_plugins.noah_plugins.RayLauncher"
    address: str | None = None  # of the cluster: auto or HOST:PORT; null: $RAY_ADDRESS, or a local Ray
    cpus_per_device: float = 1  # CPUs reserved for each device of a job
    init: dict[str, Any] = field(default_factory=dict)  # arguments of ray.init: +hydra.launcher.init.num_cpus=4


for group, name, node in (
    ("hydra/sweeper", "noah", SweeperConf),
    ("hydra/launcher", "local", LocalConf),
    ("hydra/launcher", "side_by_side", SideBySideConf),
    ("hydra/launcher", "slurm", SlurmConf),
    ("hydra/launcher", "ray", RayConf),
):
    ConfigStore.instance().store(group=group, name=name, node=node, provider="noah_lightning")


def _count_classes(root: str | None) -> int:
    from noah_lightning.data.tree import count_classes

    return count_classes(root)


def _count_packed_classes(root: str | None) -> int:
    from noah_lightning.data.pack_format import count_packed_classes

    return count_packed_classes(root)


def _scaled(times: Any, of: int, epochs: Any) -> Any:
    """One or several times in a recipe of ``of`` epochs, scaled in proportion to a run of ``epochs``."""
    if not isinstance(epochs, int):
        return times  # the schema rejects these epochs
    if isinstance(times, list):
        return ListConfig([_scaled(time, of, epochs) for time in times])  # OmegaConf.resolve takes no list
    return round(times * (epochs / of), 6)


OmegaConf.register_new_resolver("count_classes", _count_classes, replace=True)
OmegaConf.register_new_resolver("count_packed_classes", _count_packed_classes, replace=True)
OmegaConf.register_new_resolver("scaled", _scaled, replace=True)
