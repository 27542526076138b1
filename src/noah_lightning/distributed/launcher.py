"""One process per device of this machine, by torch's elastic launcher, which stops all of them if one fails."""

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

from noah_lightning.distributed.signals import SIGNALS, Stopped
from noah_lightning.errors import FAILED, INTERRUPTED, MISTAKE, RunFailed, UserError

_TALKATIVE = (
    "torch.distributed.elastic",
    "torch.distributed.elastic.agent.server.api",  # has a level of its own
    "torch.multiprocessing.spawn",
)
_interrupted = threading.Event()  # by Ctrl-C, in a process that another one has started


def run_in_processes(count: int, work: Callable[..., Any], *arguments: Any, imports: str = "torch") -> Any:
    """Call ``work(*arguments)`` in ``count`` new processes of one process group; returns what rank 0 returned.

    Args:
        count: of the processes.
        work: a function of a module.
        arguments: of it, pickled.
        imports: a module that each process imports first, while it cannot be interrupted.

    Raises:
        UserError, RunFailed: that of the first process that met one; the others are stopped.
        RunFailed: a process failed otherwise, after its traceback was printed.
        Stopped: a signal asked for it.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for library in _TALKATIVE:
        logging.getLogger(library).setLevel(logging.CRITICAL)  # what there is to say, we say
    launch = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=str(os.getpid()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        start_method="spawn",
        # torch kills what has not ended half a minute after a signal; a run may have a validation to end first
        signals_to_handle="SIGHUP,SIGQUIT",
    )
    heard: list[int] = []

    def pass_on(number: int, _: FrameType | None) -> None:
        """Tell the processes, and go on waiting for them to end; at a second Ctrl-C, or with none, end at once."""
        started = active_children()
        if not started or (number == signal.SIGINT and number in heard):
            raise SignalException(signal.Signals(number).name, signal.Signals(number))
        heard.append(number)
        for process in started:
            with suppress(ProcessLookupError):
                os.kill(process.pid or 0, number)

    in_main_thread = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, pass_on) for number in SIGNALS} if in_main_thread else {}
    with tempfile.TemporaryDirectory(prefix="noah-") as folder, _new_processes_deaf_to_interrupts():
        first_failure = Path(folder, "first")
        try:
            return elastic_launch(launch, _begin)(first_failure, imports, work, arguments)[0]
        except ChildFailedError as failure:
            exits = {one.exitcode for one in failure.failures.values()}
            for asked in SIGNALS:
                if exits <= {128 + asked, -asked}:  # the latter before it could hear
                    raise Stopped(asked) from None
            if first_failure.is_file() and (told := first_failure.read_text()):
                status, _, line = told.partition(" ")
                raise (UserError if int(status) == MISTAKE else RunFailed)(line) from None
            if signal.SIGINT in heard:  # what fails then is no failure
                raise Stopped(signal.SIGINT) from None
            number, first = failure.get_first_failure()
            raise RunFailed(
                f"process {number} ended with exit status {first.exitcode}; its traceback stands above"
            ) from None
        except SignalException as stop:
            raise Stopped(stop.sigval) from stop
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)


@contextmanager
def _new_processes_deaf_to_interrupts() -> Iterator[None]:
    """A process begins with SIGINT blocked, until :func:`_begin` can answer it; this one hears it all the same.

    A terminal's Ctrl-C goes to all processes, and one that is importing would end with a traceback.
    """
    if threading.current_thread() is not threading.main_thread():  # which alone is interrupted
        yield
        return
    resource_tracker.ensure_running()  # with the first process it would be started, which lifts the block
    done = threading.Event()
    threading.Thread(target=done.wait, daemon=True).start()  # gets the signal; Python handles it in the main thread
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        done.set()


def _begin(first_failure: Path, imports: str, work: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """What each new process runs: work that can be interrupted, once.

    The terminal interrupts all processes, then torch's launcher interrupts those that have not ended yet: a second
    time, which would break into the end of the run.
    """
    importlib.import_module(imports)  # now, as an interrupted import fails in ways of its own
    # A spawned process would spawn its loading processes too, and each of these import everything once more.
    multiprocessing.set_start_method(None, force=True)

    def hear(*_: Any) -> None:
        if not _interrupted.is_set():
            _interrupted.set()
            raise KeyboardInterrupt

    try:
        signal.signal(signal.SIGINT, hear)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        return _work(first_failure, work, arguments)
    except KeyboardInterrupt:  # of which torch makes a success
        raise SystemExit(INTERRUPTED) from None


def _work(first_failure: Path, work: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """Do the work in one of several processes.

    The first to fail leaves a file with its exit status and the line that says why, or an empty one and a traceback.
    The others then fail too, for want of an answer from it, and keep that to themselves.
    """
    try:
        return work(*arguments)
    except (UserError, RunFailed) as error:
        status = MISTAKE if isinstance(error, UserError) else FAILED
        with suppress(FileExistsError), first_failure.open("x") as file:
            file.write(f"{status} {error}")
        raise SystemExit(status) from None
    except Stopped as stopped:
        raise SystemExit(128 + stopped.signal) from None
    except Exception:
        if _interrupted.is_set():  # and the others as well: what fails then is no failure
            raise SystemExit(1) from None
        text = traceback.format_exc()
        with suppress(FileExistsError), first_failure.open("x"):
            print(text, end="", file=sys.stderr, flush=True)
        raise SystemExit(1) from None
