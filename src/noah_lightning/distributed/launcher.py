"""Launcher of one process per device on this machine, on torch's elastic launcher, which stops all if one fails."""

import importlib
import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import active_children, resource_tracker
from pathlib import Path
from types import FrameType
from typing import Any

from noah_lightning.distributed.environment import rank
from noah_lightning.distributed.signals import SIGNALS, Stopped, handled
from noah_lightning.errors import FAILED, INTERRUPTED, MISTAKE, RunFailed, UserError

START_METHOD = "spawn"  # a forked process could not use CUDA once its parent has
_SILENCED = (
    "torch.distributed.elastic",
    "torch.distributed.elastic.agent.server.api",  # has a level of its own
    "torch.multiprocessing.spawn",
)
_interrupted = threading.Event()  # Ctrl-C, in a process started here


def run_in_processes(count: int, work: Callable[..., Any], *arguments: Any, imports: str = "torch") -> Any:
    """Call ``work(*arguments)`` in ``count`` new processes of one process group; return what rank 0 returned.

    Args:
        count: number of processes.
        work: function of an importable module; it and its arguments are pickled.
        imports: module that each process imports before it can be interrupted.

    Raises:
        UserError, RunFailed: raised by the first process that failed; the others are stopped.
        RunFailed: a process failed in another way, after its traceback was printed.
        Stopped: the run was stopped by a signal.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for library in _SILENCED:
        logging.getLogger(library).setLevel(logging.CRITICAL)  # failures are reported below
    launch = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=str(os.getpid()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        start_method=START_METHOD,
        # On a signal that torch handles it kills, half a minute later, a run that may still be validating.
        signals_to_handle="SIGHUP,SIGQUIT",
    )
    received: list[int] = []

    def forward(number: int, _: FrameType | None) -> None:
        """Forward a signal and keep waiting; end at once at a second Ctrl-C, or if nothing has been started."""
        started = active_children()
        if not started or (number == signal.SIGINT and number in received):
            raise SignalException(signal.Signals(number).name, signal.Signals(number))
        received.append(number)
        for process in started:
            with suppress(ProcessLookupError):
                os.kill(process.pid or 0, number)

    with tempfile.TemporaryDirectory(prefix="noah-") as folder, _new_processes_ignore_interrupts(), handled(forward):
        first_failure = Path(folder, "first")
        try:
            return elastic_launch(launch, _start)(first_failure, imports, work, arguments)[0]
        except ChildFailedError as failure:
            exits = {one.exitcode for one in failure.failures.values()}
            for number in SIGNALS:
                if exits <= {128 + number, -number}:  # the latter before its handler was installed
                    raise Stopped(number) from None
            if first_failure.is_file() and (report := first_failure.read_text(encoding="utf-8")):
                status, _, message = report.partition(" ")
                raise (UserError if int(status) == MISTAKE else RunFailed)(message) from None
            if signal.SIGINT in received:  # other errors follow from the interruption
                raise Stopped(signal.SIGINT) from None
            failed, first = failure.get_first_failure()
            raise RunFailed(
                f"process {failed} exited with status {first.exitcode}; see its traceback above"
            ) from None
        except SignalException as stop:
            raise Stopped(stop.sigval) from stop


@contextmanager
def _new_processes_ignore_interrupts() -> Iterator[None]:
    """New processes start with SIGINT blocked until :func:`_start` can handle it; this process still receives it.

    Ctrl-C in a terminal reaches all processes, and one that is still importing would end with a traceback.
    """
    if threading.current_thread() is not threading.main_thread():  # only the main thread is interrupted
        yield
        return
    resource_tracker.ensure_running()  # starting it later, with the first process, would unblock SIGINT
    done = threading.Event()
    threading.Thread(target=done.wait, daemon=True).start()  # receives it; Python runs the handler in the main thread
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        done.set()


def _start(first_failure: Path, imports: str, work: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """Entry point of a new process: ``work`` that can be interrupted once.

    The terminal interrupts all processes, then torch's launcher interrupts those that are still running: a second
    time, which would interrupt the end of the run.
    """
    importlib.import_module(imports)  # before it can be interrupted, as imports fail in their own ways then
    # DataLoader workers of a spawned process would be spawned too, and each would import everything again.
    multiprocessing.set_start_method(None, force=True)

    def interrupt_once(*_: Any) -> None:
        if not _interrupted.is_set():
            _interrupted.set()
            raise KeyboardInterrupt

    try:
        signal.signal(signal.SIGINT, interrupt_once)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        return _work(first_failure, work, arguments)
    except KeyboardInterrupt:  # torch would report success
        raise SystemExit(INTERRUPTED) from None
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # torch's launcher also interrupts a process that is ending


def _work(first_failure: Path, work: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """Do the work in one of several processes; an error writes its exit status and message to a file.

    Only the first one is reported: the other processes then fail too, because that one no longer answers.
    """
    try:
        return work(*arguments)
    except (UserError, RunFailed) as error:
        status, message, trace = MISTAKE if isinstance(error, UserError) else FAILED, str(error), ""
    except Stopped as stopped:
        raise SystemExit(128 + stopped.signal) from None
    except Exception:
        if _interrupted.is_set():  # the error follows from the interruption
            raise SystemExit(1) from None
        status, message = FAILED, f"process {rank()} exited with status 1; see its traceback above"
        trace = traceback.format_exc()
    with suppress(FileExistsError), first_failure.open("x", encoding="utf-8") as file:
        print(trace, end="", file=sys.stderr, flush=True)
        file.write(f"{status} {message}")
    raise SystemExit(status)
