"""Peak memory of a function."""

import os
from collections.abc import Callable

import torch

# Silences Kineto, torch's profiler; must be set before its first use.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")


def peak_memory(work: Callable[[], object], device: torch.device) -> int:
    """Peak size in bytes of the tensors that ``work`` allocates, including its results.

    On a CPU it is computed from the allocations recorded by the profiler, without internal buffers of libraries.
    """
    work()  # warm-up, for allocations that persist
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
