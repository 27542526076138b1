"""Classification heads over a feature map (B, C, L), by name.

A head is an ``nn.Module`` built from ``(in_channels, num_classes, **settings)`` that maps (B, C, L) to (B, K).
To add one, write a file in this package whose class is decorated with :func:`register_head`; its settings
become the keys of ``conf/head/<name>.yaml``.
"""

import importlib
import pkgutil

from noah_lightning.heads.noah import NOAHHead
from noah_lightning.heads.registry import head_names, make_head, register_head

for _module in pkgutil.iter_modules(__path__):  # every file here is a head, so finding it is registering it
    if not _module.ispkg:
        importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["NOAHHead", "head_names", "make_head", "register_head"]
