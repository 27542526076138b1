"""Timing pieces of work side by side, so that a machine's moods meet all of them alike."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Spread:
    """A median and its quartiles."""

    low: float
    median: float
    high: float


def alternate(work: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each piece of work in each round. A round runs all of them, each time another one first.

    One round more goes ahead, untimed: it fills caches and compiles what is compiled.
    """
    names = list(work)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        work[name]()
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            wait_for_device()
            start = time.perf_counter()
            work[name]()
            wait_for_device()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def spread(values: list[float]) -> Spread:
    """Median and quartiles; of fewer than 2 values the value thrice."""
    if len(values) < 2:
        return Spread(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(low, median, high)


def ratio(seconds: Mapping[str, list[float]], slow: str, fast: str) -> Spread:
    """How many times longer ``slow`` took than ``fast``: of the quotients of each round."""
    return spread([a / b for a, b in zip(seconds[slow], seconds[fast], strict=True)])


def wait_for_device() -> None:
    """Until a GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
