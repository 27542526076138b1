"""Names of the files in a run directory, apart from ``runs``, which needs torch and says what they hold."""

CONFIG, LOG, METRICS, RESULTS = "config.yaml", "train.log", "metrics.csv", "results.json"
PREDICTIONS, CHECKPOINTS = "predictions.npz", "checkpoints"
NONFINITE = "nonfinite.json"
SWEEP = "sweep.json"  # in the folder of a sweep
