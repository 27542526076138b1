"""How the images of an optimiser step are shared out, and going on with a run that shares them out in another way."""

from typing import Any, NamedTuple

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback


class BatchSplit(NamedTuple):
    """``processes`` take ``images`` each in a pass, and ``passes`` make up a step."""

    processes: int
    images: int
    passes: int

    @property
    def in_pass(self) -> int:
        """Images of all processes in a pass."""
        return self.processes * self.images

    @property
    def in_step(self) -> int:
        """Images of an optimiser step."""
        return self.in_pass * self.passes

    def __str__(self) -> str:
        parts = [f"{self.processes} × " if self.processes > 1 else "", f"{self.images} images"]
        return "".join(parts) + (f" × {self.passes} passes" if self.passes > 1 else "")


def not_exact(begun: BatchSplit, now: BatchSplit, shards: bool) -> str:
    """What is not as it would have been if the run had gone on as it was begun, in a line.

    Args:
        begun: the split until now.
        now: the split from now on.
        shards: each process reads files of its own, so their number decides which images meet in a step.
    """
    if begun.in_step != now.in_step:
        images = (
            f"a step has {now.in_step} images instead of {begun.in_step}, so an epoch has other steps, the recipe "
            "may scale the learning rate, and up to a step of images is seen twice"
        )
    elif shards and begun.processes != now.processes:
        images = "this epoch shows some images twice and others not at all, as each process reads other shards"
    else:
        images = "a step still has the same images"
    return (
        f"{now} instead of {begun}: {images}; augmentation, mixing and dropout draw anew, batch norm sees other "
        "groups of images, and sums are rounded otherwise"
    )


class KeepPlace(Callback):
    """Tells each checkpoint how its run shares out the images, so that a run which does otherwise finds its place.

    The place in an epoch is a number of batches; of batches of another size it is another number. Where the images
    that have been seen do not come to whole steps, the last of them are seen again.
    """

    def __init__(self, split: BatchSplit) -> None:
        self.split = split

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["batch_split"] = list(self.split)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        begun = BatchSplit(*checkpoint["batch_split"])
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        if begun == self.split or progress["is_last_batch"]:
            return
        done = progress["current"]["processed"]
        moved = self._steps(done * begun.in_pass, trainer) * self.split.passes - done
        for counts in (progress["current"], progress["total"]):
            for name in counts:
                counts[name] += moved

    def _steps(self, images: int, trainer: pl.Trainer) -> int:
        """Whole steps that these images come to; at least one is left to end the epoch with."""
        batches = len(trainer.datamodule.train_batches(0, 0))  # type: ignore[attr-defined]
        if isinstance(trainer.limit_train_batches, int):
            batches = min(batches, trainer.limit_train_batches)
        return min(images // self.split.in_step, (batches - 1) // self.split.passes)
