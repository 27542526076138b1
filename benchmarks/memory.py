"""The most memory that a piece of work needs at a time."""

import os
from collections.abc import Callable

import torch

# Of Kineto, torch's profiler, which reports on itself; it reads this when first used.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")


def peak_memory(work: Callable[[], object], device: torch.device) -> int:
    """Bytes of tensors at the peak, beyond those that were there before, the results included.

    On a CPU counted from the allocations and releases that the profiler saw; what a matrix library takes for itself
    is not in it.
    """
    work()  # once ahead, for what stays
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    current = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            current += event.nbytes()
            peak = max(peak, current)
    return peak
