"""Alternating timing of several functions, so that variations of the machine affect all of them equally."""

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
    """Seconds of each function in each round; a round runs all of them, each time starting with another one.

    An untimed round for warm-up and compilation comes first.
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
    """Median and quartiles, all equal for a single value."""
    if len(values) < 2:
        return Spread(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(low, median, high)


def ratio(seconds: Mapping[str, list[float]], slow: str, fast: str) -> Spread:
    """Spread over the rounds of the time of ``slow`` divided by that of ``fast``."""
    return spread([a / b for a, b in zip(seconds[slow], seconds[fast], strict=True)])


def wait_for_device() -> None:
    """Wait until the GPU, if there is one, has finished."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
