"""``noah sync``: upload what runs without a network left, with W&B's own command."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from noah_lightning.errors import ConfigError, RunFailed
from noah_lightning.run_dir import ASIDE

UPLOAD = (sys.executable, "-m", "wandb", "sync")


def sync(folders: Sequence[Path]) -> int:
    """Upload the offline W&B runs of run directories or sweeps; returns how many.

    Raises:
        ConfigError: there are none, or W&B has no API key here.
        RunFailed: W&B's command failed; what it said has been shown.
    """
    runs = [run for run in wandb_runs(folders) if run.name.startswith("offline-run-")]
    if not runs:
        raise ConfigError(f"no offline W&B run under {_names(folders)}; logger=wandb logger.mode=offline makes one")
    todo = [run for run in runs if not list(run.glob("*.wandb.synced"))]  # W&B's own mark
    before = f", {len(runs) - len(todo)} before" if len(todo) < len(runs) else ""
    if todo:
        os.environ.pop("WANDB_MODE", None)  # "offline" was for the runs; to upload them W&B has to go online
        _require_key()
        # All at once: W&B then uploads the parts of a run that was resumed in their order.
        command = [*UPLOAD, *map(str, todo)]
        if status := subprocess.run(command, check=False).returncode:
            raise RunFailed(f"wandb sync ended with exit status {status}; noah sync again uploads what is missing")
    print(f"uploaded {len(todo)} W&B run{'' if len(todo) == 1 else 's'}{before}")
    return len(todo)


def wandb_runs(folders: Sequence[Path]) -> list[Path]:
    """What W&B keeps of each run at or under ``folders``, in the order in which they began, folder by folder.

    Attempts that a sweep has set aside are left out: the repeated job has the same W&B run.

    Raises:
        ConfigError: one is no folder.
    """
    found: dict[Path, None] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"{folder} is no folder")
        files = folder.rglob("wandb/*run-*/run-*.wandb")
        runs = {file.parent for file in files if ASIDE not in file.relative_to(folder).parts}
        runs = {run for run in runs if not run.is_symlink()}  # latest-run
        found |= dict.fromkeys(run.resolve() for run in sorted(runs))
    return list(found)


def _require_key() -> None:
    """Looked up where W&B looks; wandb.login would answer by what it was asked earlier in this process."""
    from requests.utils import get_netrc_auth  # of wandb's own dependencies

    server = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    if not os.environ.get("WANDB_API_KEY") and not get_netrc_auth(server):
        raise ConfigError("W&B has no API key here; run wandb login, or set WANDB_API_KEY")


def _names(folders: Sequence[Path]) -> str:
    return ", ".join(map(str, folders))
