"""Several runs from one command: Hydra's multirun with a plan, a search, resuming and launchers of its own."""
