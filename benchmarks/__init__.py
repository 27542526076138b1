"""Benchmarks against an alternative, alternating in the same process; the result is a ratio."""
