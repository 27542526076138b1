"""``noah pack``: a folder tree of images into large shards."""

from noah_lightning.tools.pack.packer import pack

__all__ = ["pack"]
