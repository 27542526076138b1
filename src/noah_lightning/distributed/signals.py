"""Being asked to stop: a signal sets a flag, the run saves itself at the next batch, and ends.

SIGTERM and SIGUSR1 are what clusters send before they take a machine away; SIGINT is Ctrl-C, and a second one stops
at once.
"""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
# A terminal's Ctrl-C reaches every process of a run, and the one that started them sends it on to them.
ECHO = 1.0  # seconds


class Stopped(Exception):
    """The run was asked to stop, has saved its state, and can go on.

    Attributes:
        signal: that asked for it.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.signal = number

    def __reduce__(self) -> tuple[type["Stopped"], tuple[int]]:
        return Stopped, (self.signal,)  # a launcher pickles it


class StopRequest:
    """Whether this process has been asked to stop.

    Attributes:
        signal: number of the signal, 0 for none.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._interrupted: float | None = None  # when Ctrl-C was first heard

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hear the signals; before and after they do what they did. Only a main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._hear) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if number == signal.SIGINT:
            self._interrupted = self._interrupted or now
            if now - self._interrupted > ECHO:
                raise KeyboardInterrupt
        self.signal = self.signal or number
