"""Hydra plugins: the sweeper and the launchers of noah_lightning, each with its settings."""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore

from noah_lightning.sweep import clusters, launchers, sweeper

# Hydra accepts classes of this module only.


class NoahSweeper(sweeper.Sweeper):
    """``hydra/sweeper=noah``."""


class LocalLauncher(launchers.LocalLauncher):
    """``hydra/launcher=local``."""


class SlurmLauncher(clusters.SlurmLauncher):
    """``hydra/launcher=slurm``."""


class RayLauncher(clusters.RayLauncher):
    """``hydra/launcher=ray``."""


@dataclass
class SweeperConf:
    _target_: str = "hydra_plugins.noah_sweep.NoahSweeper"
    max_batch_size: int | None = None  # jobs that a launcher of another package gets at a time; null: all
    params: dict[str, str] | None = field(default_factory=dict)  # what to sweep, as a preset gives it
    show: bool = False  # print the configurations of the jobs: -m --cfg job


@dataclass
class LocalConf:
    _target_: str = "hydra_plugins.noah_sweep.LocalLauncher"


@dataclass
class SlurmConf:
    _target_: str = "hydra_plugins.noah_sweep.SlurmLauncher"
    partition: str | None = None  # null: the cluster's default
    account: str | None = None
    timeout_min: int = 1440  # longest time of a job
    cpus_per_task: int = 8  # DataLoader workers and the training loop
    mem_gb: float | None = None  # per node; null: the cluster's default
    gpus_per_node: int | None = None  # null: one per task where the devices are GPUs
    max_jobs: int = 64  # of the sweep at a time
    setup: list[str] = field(default_factory=list)  # shell lines before each job, such as [module load cuda]
    # further options of sbatch: +hydra.launcher.additional.qos=high
    additional: dict[str, Any] = field(default_factory=dict)


@dataclass
class RayConf:
    _target_: str = "hydra_plugins.noah_sweep.RayLauncher"
    address: str | None = None  # of a cluster: auto, or HOST:PORT; null: $RAY_ADDRESS, or a Ray of this machine alone
    cpus_per_device: float = 1  # that each job occupies for a device of its own, a GPU or not
    init: dict[str, Any] = field(
        default_factory=dict
    )  # further arguments of ray.init: +hydra.launcher.init.num_cpus=4


for group, name, node in (
    ("hydra/sweeper", "noah", SweeperConf),
    ("hydra/launcher", "local", LocalConf),
    ("hydra/launcher", "slurm", SlurmConf),
    ("hydra/launcher", "ray", RayConf),
):
    ConfigStore.instance().store(group=group, name=name, node=node, provider="noah_lightning")
