"""``python train.py model=resnet50 head=noah``: the same as ``noah train``, from a clone."""

import sys

import hydra
from omegaconf import DictConfig

from noah_lightning.cli import exit_status
from noah_lightning.cli.hydra_app import run_hydra
from noah_lightning.sweep.job import train_job


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> float | None:
    """Train by the composed configuration; returns the best top-1 in percent, which a sweeper can optimize."""
    return train_job(cfg)


if __name__ == "__main__":
    sys.exit(exit_status(lambda: run_hydra(main, sys.argv[1:], program=sys.argv[0])))
