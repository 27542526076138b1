"""Exit statuses, beside 0 and 128 + the signal that stopped a run."""

FAILED, MISTAKE, INTERRUPTED, BROKEN_PIPE = 1, 2, 130, 141
