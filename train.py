"""``python train.py model=resnet50 head=noah``: the same as ``noah train``, from a clone."""

import sys

from noah_lightning.__main__ import main


def train() -> int:
    """Train by the command line; the task returns the best top-1 in percent, which a sweeper can optimize."""
    from pathlib import Path

    import hydra

    from noah_lightning.cli import exit_status
    from noah_lightning.cli.hydra_app import run_hydra
    from noah_lightning.sweep.job import train_job

    conf = str(Path(__file__).resolve().with_name("conf"))
    task = hydra.main(version_base="1.3", config_path=conf, config_name="config")(train_job)
    return exit_status(lambda: run_hydra(task, sys.argv[1:], program=sys.argv[0]))


if __name__ == "__main__":
    sys.exit(main(train))
