"""Commands in processes of their own that start at once: forked from a process that has imported everything.

A new Python would import for six seconds. What a command does from then on, its signals, process group, standard
streams and environment, is that of a real one; a few tests start the real one, and prove that it is the same.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from conftest import Answer
from noah_lightning.distributed.environment import rank
from noah_lightning.distributed.signals import Stopped, StopRequest

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["noah_lightning.cli.hydra_app", "noah_lightning.train"])


class Command:
    """``noah <argv>``, as the leader of a process group; its interface is that of ``subprocess.Popen``."""

    def __init__(self, *argv: str, cwd: Path, out: Path, err: Path | None = None, **environment: str) -> None:
        self._out, self._err = out, err or out
        self._process: BaseProcess = _server.Process(target=_run, args=(argv, cwd, out, self._err, environment))
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        """Exit status, negative after a signal, or None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Exit status; raises TimeoutExpired."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("noah", timeout or 0)
        return self._process.exitcode

    def answer(self) -> Answer:
        """What the command left, after it has ended."""
        return Answer(self.wait(), self._out.read_text(), self._err.read_text())

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)


def _run(argv: tuple[str, ...], cwd: Path, out: Path, err: Path, environment: dict[str, str]) -> None:
    os.setsid()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # blocked if check-data has started the server
    os.chdir(cwd)
    os.environ.update(environment)
    sys.argv = ["noah", *argv]
    sys.path.insert(0, "")  # as ``python -m`` does
    for stream, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    from noah_lightning.cli import main
    from noah_lightning.distributed import launcher

    multiprocessing.set_start_method(None, force=True)  # of DataLoader workers, as in a new process
    launcher.START_METHOD = "fork"
    torch.cuda.is_available = lambda: False  # the GPU may not be used after a fork
    sys.exit(main(argv))


def save_slowly(folder: Path) -> None:
    """Work of a process that needs two seconds to save after a signal; it lies here because this imports fast."""
    request = StopRequest()
    with request.listening():
        (folder / f"ready-{rank()}").write_text(multiprocessing.get_start_method())
        while not request.signal:
            time.sleep(0.05)
        time.sleep(2)
        (folder / f"saved-{rank()}").touch()
        raise Stopped(request.signal)
