"""Benchmark of checkpoints: time to save the state of a run, relative to the steps between two checkpoints."""

from benchmarks.report import Report, make_parser, run
from benchmarks.step import CASES
from benchmarks.timing import spread
from benchmarks.trainer import BATCH, prepared_run
from noah_lightning.analysis.tables import Table
from noah_lightning.callbacks.checkpoints import Checkpoints

EVERY = 100  # steps between two checkpoints
STEPS = 10  # timed between two checkpoints in this benchmark


def bench_checkpoint(rounds: int) -> Report:
    """Save a ResNet-18 and its optimizer during training, as ``noah train`` does.

    Args:
        rounds: number of timed checkpoints, each after 10 steps, after one for warm-up.
    """
    case = CASES[0]
    never = "checkpoint.every_n_steps=1000000"
    with prepared_run(case.make(), case.size, (rounds + 1) * STEPS + 1, never) as training:
        trainer = training.trainer
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        [checkpoints] = (each for each in callbacks if isinstance(each, Checkpoints))
        turns = training.in_turns(STEPS, rounds, lambda: checkpoints.save(trainer))
        size = max(path.stat().st_size for path in training.folder.rglob("*.ckpt"))
    step, save = spread([each / STEPS for each in turns.seconds]), spread(turns.other_seconds)
    share = spread([each / (EVERY * step.median) for each in turns.other_seconds])
    row = (
        case.name,
        f"{1000 * step.median:,.1f}",
        f"{1000 * save.median:,.1f} ({1000 * save.low:,.1f}–{1000 * save.high:,.1f})",
        f"{size / 1e6:,.1f} MB",
        f"{100 * share.median:.2f} % ({100 * share.low:.2f}–{100 * share.high:.2f})",
    )
    columns = ("model", "ms/step", "ms/checkpoint", "size", f"cost, every {EVERY} steps")
    figures = {"step_seconds": step.median, "save_seconds": save.median, "bytes": size, "share": share.median}
    what = f"batches of {BATCH} of {case.size} pixels, SGD with momentum, {rounds} rounds; medians (quartiles)"
    return Report("checkpoint", Table(columns, [row], left=("model",)), [figures], [what])


def main() -> None:
    options = make_parser("Time to save a checkpoint, relative to the steps between two.").parse_args()
    run(lambda: bench_checkpoint(options.rounds), options.json)


if __name__ == "__main__":
    main()
