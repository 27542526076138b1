"""``noah train -m``: a run for every combination of settings, in processes of their own."""

from noah_lightning.sweep.run import sweep

__all__ = ["sweep"]
