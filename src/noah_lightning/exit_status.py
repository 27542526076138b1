"""Exit statuses, beside 0 and 128 + the signal that stopped a run. MISTAKE: one of the user's."""

FAILED, MISTAKE, INTERRUPTED, BROKEN_PIPE = 1, 2, 130, 141
