"""Signals that stop a run: a signal sets a flag, the run saves a checkpoint after the current step and ends.

SIGTERM and SIGUSR1 are what clusters send before they take a machine away. SIGINT is Ctrl-C; a second one stops the
run at once, and so does any of them if the next batch of images does not arrive, as from storage that hangs. Torch is
not imported here.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from noah_lightning.errors import INTERRUPTED

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
# Ctrl-C in a terminal reaches every process of a run, and the process that started them forwards it as well.
ECHO = 1.0  # seconds
PATIENCE = 5.0  # seconds; a stopped run waits for a batch once or twice as long


class Stopped(Exception):
    """The run was stopped by a signal, whose number is ``signal``; it can be resumed."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.signal = number

    def __reduce__(self) -> tuple[type["Stopped"], tuple[int]]:
        return Stopped, (self.signal,)  # a launcher pickles it


@contextmanager
def handled(handler: Callable[[int, FrameType | None], Any], numbers: Sequence[int] = SIGNALS) -> Iterator[None]:
    """Handle signals within this context; does nothing outside the main thread, as Python requires."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


@contextmanager
def interrupts_in_one_line() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt in this process, but end it at once during an import and after this context.

    Modules that are interrupted while they are imported swallow a KeyboardInterrupt, or raise an error of their own.
    """
    own = os.getpid()  # forked processes inherit the handler

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() == own:
            os.write(2, b"noah: interrupted\n")
        os._exit(INTERRUPTED)

    def interrupt(number: int, frame: FrameType | None) -> None:
        outer = frame
        while outer is not None:
            if outer.f_code.co_filename.startswith("<frozen importlib"):
                end(number, frame)
            outer = outer.f_back
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # ignored, as in the background of a shell
        yield
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, end)


class StopRequest:
    """Flag that a signal sets in this process.

    Attributes:
        signal: number of the first signal received, 0 for none.
        stuck: whether the run was interrupted because a batch did not arrive.
    """

    def __init__(self) -> None:
        self.signal, self.stuck = 0, False
        self._loading: FrameType | None = None
        self._interrupted: float | None = None  # time of the first Ctrl-C

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Context within which signals set the flag."""
        with handled(self._receive), handled(self._look, (signal.SIGALRM,)):
            try:
                yield
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.signal:
            self._loading = _loading(frame)
            signal.setitimer(signal.ITIMER_REAL, PATIENCE, PATIENCE)
        if number == signal.SIGINT:
            self._interrupted = self._interrupted or now
            if now - self._interrupted > ECHO:
                raise KeyboardInterrupt
        self.signal = self.signal or number

    def _look(self, number: int, frame: FrameType | None) -> None:
        """Interrupt the run if it still waits for the same batch as the last time."""
        before, self._loading = self._loading, _loading(frame)
        if self._loading and self._loading is before:
            signal.setitimer(signal.ITIMER_REAL, 0)
            self.stuck, self._loading = True, None
            raise KeyboardInterrupt  # other errors would be those of an image that cannot be read


def _loading(frame: FrameType | None) -> FrameType | None:
    """The call in a stack that waits for a batch of a DataLoader, of anybody's data set."""
    while frame and (frame.f_globals.get("__name__"), frame.f_code.co_name) not in _WAITING:
        frame = frame.f_back
    return frame


_WAITING = [("torch.utils.data.dataloader", name) for name in ("__next__", "__iter__")]


def use_our_signal_handlers(trainer: Any) -> None:
    """Keep Lightning from installing its own signal handlers in ``fit``, which would replace those above.

    Lightning's handler of SIGTERM communicates with the other processes from within the signal handler. There is no
    public switch for it, so its private method is replaced.

    Raises:
        AttributeError: this version of Lightning has no such method.
    """
    connector = trainer._signal_connector
    _ = connector.register_signal_handlers  # raises where Lightning has renamed it
    connector.register_signal_handlers = lambda: None
