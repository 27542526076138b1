"""Loggers: console, metrics.csv, TensorBoard and Weights & Biases."""
