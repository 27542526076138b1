"""Sweeps: a sweeper and launchers for Hydra's multirun, with checks in advance, search and resuming."""
