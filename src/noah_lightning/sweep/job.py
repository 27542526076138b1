"""One job of a sweep in a process of its own, forked from a server that has imported everything once."""

import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from noah_lightning.config.schema import RunConfig
from noah_lightning.distributed.environment import end_with_parent
from noah_lightning.distributed.signals import Stopped
from noah_lightning.errors import RunFailed, UserError, one_line
from noah_lightning.sweep.again import mistakes_noted
from noah_lightning.sweep.folder import has_finished


def start(config: RunConfig, run_dir: Path, gpus: Sequence[str], quiet: bool) -> tuple[BaseProcess, Connection]:
    """Start training; the connection gives the error's line, or "" when all went well.

    Args:
        config: resolved.
        run_dir: the run directory to be made, or that of a run to go on with.
        gpus: names of the GPUs it may use; none: as they are.
        quiet: leave its lines to the run's train.log.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(["noah_lightning.train"])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(config, run_dir, list(gpus), quiet, sender))
    process.start()
    sender.close()
    return process, receiver


def _work(config: RunConfig, run_dir: Path, gpus: list[str], quiet: bool, sender: Connection) -> None:
    end_with_parent()
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    from noah_lightning.sweep.launch import train_in_processes

    try:
        with (
            Path(os.devnull).open("w") as nowhere,
            redirect_stdout(nowhere if quiet else sys.stdout),
            mistakes_noted(run_dir),
        ):
            train_in_processes(config, run_dir, resume=True)
        told = ""
    except KeyboardInterrupt:
        told = "interrupted"
    except Stopped as stopped:
        told = f"stopped by {stopped}; noah resume {run_dir}"
    except (UserError, RunFailed) as error:
        told = "" if has_finished(run_dir) else str(error)  # perhaps by another process, meanwhile
    except Exception as error:
        traceback.print_exc()
        told = f"{type(error).__name__}: {one_line(error)}"
    with suppress(OSError):  # the sweep is gone
        sender.send(told)
