"""Hydra plugins of noah_lightning."""
