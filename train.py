"""``python train.py model=resnet50 head=noah``: the same as ``noah train`` for use from a clone."""

import sys

from noah_lightning.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
