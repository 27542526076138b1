"""Where metrics and log lines go."""
