"""A run goes on with the settings that it was begun with, but for a few."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from noah_lightning.errors import ConfigError
from noah_lightning.recorded import flat
from noah_lightning.run_config import read_config

# Settings that may differ from those the run was begun with: where things are, who loads them, what ends the run.
FREE = ("data.root", "data.num_workers", "data.max_unreadable", "trainer.nonfinite", "logger.mode")
# How the images of a step are shared out, which may differ by force.
SPLIT = (
    "recipe.batch_size",
    "data.batch_size",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.strategy",
    "trainer.accumulate_grad_batches",
)


def check_same(run_dir: Path, config: DictConfig, force: bool = False) -> None:
    """Refuse to go on with settings other than the run's own; with ``force`` the batch may be split otherwise.

    Raises:
        ConfigError: the settings differ, or there is no run.
    """
    free = (*FREE, *SPLIT) if force else FREE
    begun, now = (dict(flat(OmegaConf.to_container(one))) for one in (read_config(run_dir), config))
    for key in sorted(begun.keys() | now.keys()):
        if begun.get(key) != now.get(key) and key not in free:
            may = "by --force, which says what is not exact then" if key in SPLIT else f"only in {', '.join(FREE)}"
            raise ConfigError(
                f"{run_dir} was begun with {key}={begun.get(key)}, not {now.get(key)}; a run goes on with its own "
                f"settings, others are taken {may}"
            )
