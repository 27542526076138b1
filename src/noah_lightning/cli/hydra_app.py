"""Hydra application of ``noah train``, with one-line error messages and tab completion."""

import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore

from noah_lightning.config.compose import CONFIG_ERRORS, check_overrides, config_dir, explain
from noah_lightning.distributed.environment import rank
from noah_lightning.distributed.signals import Stopped
from noah_lightning.errors import MISTAKE, ConfigError, RunFailed, UserError, did_you_mean
from noah_lightning.sweep.job import train_job


def train(words: Sequence[str]) -> None:
    """``noah train <words>``; raises what :func:`run_hydra` does."""
    run_hydra(hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="config")(train_job), words)


def run_hydra(main: Callable[[], Any], words: Sequence[str], program: str = "noah") -> None:
    """Run a function decorated by ``hydra.main`` with the arguments of a command line.

    Raises:
        UserError: anything the user can fix, including Hydra's own errors.
        RunFailed: a process of the run crashed, or jobs of a sweep failed.
        Stopped: the run was stopped by a signal, after its state was saved.
    """
    arguments = get_args_parser().parse_intermixed_args(words)
    flags, overrides = _prepared(words, arguments)
    if arguments.shell_completion and "COMP_LINE" in os.environ:  # Hydra expects a program name of one word
        os.environ["COMP_LINE"] = re.sub(r"^(\S*) train(?= |$)", r"\1", os.environ["COMP_LINE"])
    sys.argv = [program, *flags, *overrides]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing and exiting
    try:
        if not arguments.config_dir and not any(word.startswith("hydra.searchpath=") for word in overrides):
            check_overrides(overrides)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "provider=", UserWarning)  # a missing config folder
            main()
    except (*CONFIG_ERRORS, UserWarning) as error:
        if rank() > 0:
            raise SystemExit(MISTAKE) from None  # rank 0 reports the same error
        raise _explain(error, overrides) from error
    except OSError as error:
        if any(frame.name == train_job.__name__ for frame in traceback.extract_tb(error.__traceback__)):
            raise
        raise ConfigError(
            f"{error.filename} cannot be written ({error.strerror}); choose another hydra.run.dir=…"
        ) from error
    except SystemExit as end:  # of a single run
        if isinstance(end.__cause__, UserError | RunFailed | Stopped):
            raise end.__cause__ from end.__cause__.__cause__
        raise


def _prepared(words: Sequence[str], arguments: Any) -> tuple[list[str], list[str]]:
    """Flags and overrides, in the form that Hydra expects."""
    flags = [word for word in words if word not in arguments.overrides]
    # + adds a group to the defaults; this group is in them already, as null.
    overrides = [word.removeprefix("+") if word.startswith("+experiment=") else word for word in arguments.overrides]
    if rank() > 0:
        overrides.append("hydra.run.dir=.")  # otherwise Hydra makes a directory, which only rank 0 should
    if arguments.multirun and arguments.cfg:
        if arguments.cfg != "job" or arguments.package:
            raise ConfigError("a sweep only supports --cfg job; use other --cfg options without -m")
        given = {f"--config-{part}": getattr(arguments, f"config_{part}") for part in ("dir", "path", "name")}
        flags = ["--multirun", *(word for flag, value in given.items() if value for word in (flag, value))]
        return flags, [*overrides, "hydra.sweeper.show=true"]
    if arguments.multirun and arguments.help:
        flags = ["--help"]
    return flags, overrides


def _explain(error: Exception, overrides: Sequence[str]) -> UserError:
    """As :func:`explain`, and also for settings of launchers."""
    if unknown := re.search(r"Could not override 'hydra\.launcher\.([\w.]+)'", str(error)):
        name = next((word.partition("=")[2] for word in overrides if word.startswith("hydra/launcher=")), "local")
        known = [
            str(key) for key in ConfigStore.instance().load(f"hydra/launcher/{name}.yaml").node if key != "_target_"
        ]
        advice = did_you_mean(unknown[1], known) or "; choose a launcher that has it, such as hydra/launcher=slurm"
        return ConfigError(f"hydra/launcher={name} has no setting {unknown[1]!r}{advice}")
    if rejected := re.fullmatch(r"Error merging override (.*)", str(error)):
        return ConfigError(f"{rejected[1]!r} cannot be set: {str(error.__context__).partition(chr(10))[0]}")
    return explain(error, overrides)
