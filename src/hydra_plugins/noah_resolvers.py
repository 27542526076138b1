"""OmegaConf resolvers used in ``conf/``; Hydra imports this module before it composes a configuration."""

from omegaconf import OmegaConf


def _count_classes(root: str | None) -> int:
    from noah_lightning.data.tree import count_classes

    return count_classes(root)


def _count_packed_classes(root: str | None) -> int:
    from noah_lightning.data.pack_format import count_packed_classes

    return count_packed_classes(root)


OmegaConf.register_new_resolver("count_classes", _count_classes, replace=True)
OmegaConf.register_new_resolver("count_packed_classes", _count_packed_classes, replace=True)
