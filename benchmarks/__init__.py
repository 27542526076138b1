"""Benchmarks: ours beside the alternative, in one process, in turns; the result is a ratio."""
