"""``noah pack``: a folder tree of images into large shards."""

from noah_lightning.packing.packer import pack

__all__ = ["pack"]
