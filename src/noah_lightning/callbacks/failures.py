"""Failures of a run or evaluation: a check that losses and weights are finite, and errors as one-line messages."""

import errno
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.utils.data._utils import signal_handling

from noah_lightning.atomic_io import write_whole
from noah_lightning.config.schema import RunConfig
from noah_lightning.data.datamodule import ImageDataModule
from noah_lightning.distributed.collectives import gather_floats
from noah_lightning.distributed.environment import rank
from noah_lightning.errors import RunFailed, RunFailedEverywhere, count, one_line, shell_word
from noah_lightning.run_dir import NONFINITE
from noah_lightning.task import ClassificationTask
from noah_lightning.task.optimizer import all_finite

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
_NONE = [math.inf, 0.0]


class NonFinite(RunFailedEverywhere):
    """A loss or gradient was not finite.

    Attributes:
        epoch, batch: position, counted from 0.
        losses: losses of that batch by rank: ``nan``, ``inf``, ``-inf`` or ``finite``.
    """

    def __init__(self, epoch: int, batch: int, what: str, losses: Mapping[int, str]) -> None:
        super().__init__(f"epoch {epoch + 1}, batch {batch + 1}: the {what}")
        self.epoch, self.batch, self.losses = epoch, batch, losses


class NonFiniteCheck(Callback):
    """Collective check that losses and weights are finite; must come before callbacks that save.

    Losses stay on the device, so that a step does not wait for it. At logged steps, at the end of an epoch and at
    each checkpoint all processes gather (a collective) the first loss that is not finite, and raise the same error.
    """

    def __init__(self) -> None:
        self._unread: list[tuple[int, Tensor]] = []  # batch and loss ()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, ClassificationTask)
        if pl_module.guard is None:  # the guard skips such steps
            self._unread.append((batch_idx, pl_module.loss))
        done = batch_idx + 1
        last = done == trainer.num_training_batches
        stepped = last or done % trainer.accumulate_grad_batches == 0
        if stepped and trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._check_losses(trainer)
        if last:  # validation follows, which saves the best predictions
            self._check_all(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._check_all(trainer, pl_module)

    def _check_all(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        self._check_losses(trainer)
        if not all_finite(list(task.parameters())):  # caused by the latest step, or its loss would not be finite
            losses = dict.fromkeys(range(trainer.world_size), "finite")
            raise NonFinite(trainer.current_epoch, trainer.fit_loop.batch_idx, "gradient is not finite", losses)

    def _check_losses(self, trainer: pl.Trainer) -> None:
        found = gather_floats(self._first(), trainer)
        batch = min(number for number, _ in found)
        if batch < math.inf:
            losses = {number: str(loss) for number, (first, loss) in enumerate(found) if first == batch}
            raise NonFinite(trainer.current_epoch, int(batch), f"loss is {min(losses.values())}", losses)

    def _first(self) -> list[float]:
        """[batch, loss] of the first unread loss that is not finite, or [inf, 0]; waits for the device."""
        unread, self._unread = self._unread, []
        if not unread:
            return _NONE
        losses = torch.stack([loss.float() for _, loss in unread]).tolist()
        found = ([batch, loss] for (batch, _), loss in zip(unread, losses, strict=True) if not math.isfinite(loss))
        return next(found, _NONE)


@contextmanager
def failures_in_one_line(
    config: RunConfig, data: ImageDataModule, run_dir: Path, trainer: pl.Trainer
) -> Iterator[None]:
    """Turn errors of memory, disk and DataLoader workers into one line, and record the images of a NonFinite batch.

    The line ends with the command to repeat: ``noah resume``, or ``noah evaluate`` if ``trainer`` has only validated.

    Raises:
        RunFailed: out of memory or disk, a DataLoader worker died, or a loss or gradient was not finite.
    """
    try:
        with _one_error_for_dead_workers(trainer):
            yield
    except NonFinite as error:
        if rank() == 0:
            record = _record(data, error).encode()
            with suppress(OSError):  # a full disk
                write_whole(run_dir / NONFINITE, lambda file: file.write(record))
        raise RunFailedEverywhere(
            f"{error}; its images are in {NONFINITE}, the last checkpoint is from before it; try a smaller "
            "recipe.optimizer.lr, recipe.gradient_clip=1 or trainer.nonfinite=skip, which skips such steps"
        ) from error
    except (OSError, RuntimeError) as error:
        text, evaluated = one_line(error), trainer.state.fn == TrainerFn.VALIDATING
        again = f"noah {'evaluate' if evaluated else 'resume'} {shell_word(run_dir)}"
        if isinstance(error, torch.OutOfMemoryError):
            message = _out_of("GPU memory", config, data, evaluated)
        elif "DefaultCPUAllocator" in text:
            message = _out_of("memory", config, data, evaluated)
        elif isinstance(error, OSError) and error.errno in DISK_ERRORS:
            message = f"disk error ({text}); free some space, then {again}"
        elif text.startswith("DataLoader worker") or isinstance(error, ConnectionError):
            message = (  # the latter if it was killed while it sent a batch
                f"a DataLoader worker died, perhaps out of memory: {text}; try a smaller data.num_workers, then "
                f"{again}"
            )
        else:
            raise
        raise RunFailed(message) from error


@contextmanager
def _one_error_for_dead_workers(trainer: pl.Trainer) -> Iterator[None]:
    """Let only the first failure of a run be raised, and stop all DataLoader workers before it leaves this context.

    torch's handler of SIGCHLD raises an error for each DataLoader whose workers die, at any line of Python, and
    Lightning keeps the training loader if validation fails, and both if its teardown is interrupted by such an error.
    """
    check, failed = signal_handling._error_if_any_worker_fails, False

    def check_until_failure() -> None:
        nonlocal failed
        if not failed:
            try:
                check()
            except RuntimeError:
                failed = True
                raise

    signal_handling._error_if_any_worker_fails = check_until_failure
    try:
        yield
    finally:
        failed = True
        try:
            for loader in (trainer.train_dataloader, trainer.val_dataloaders):
                if iterator := getattr(loader, "_iterator", None):  # of persistent workers
                    iterator._shutdown_workers()  # as Lightning does, and forgets their numbers
        finally:
            signal_handling._error_if_any_worker_fails = check


def _record(data: ImageDataModule, error: NonFinite) -> str:
    """Epoch, batch and images of every process as JSON; the images follow from the seed."""
    processes = []
    for number, loss in error.losses.items():
        _, images = next(iter(data.train_batches(error.epoch, number, error.batch)))
        found = [{"number": image, "file": str(data.train_file(image) or "")} for image in images]
        processes.append({"process": number, "loss": loss, "images": found})
    return json.dumps({"epoch": error.epoch + 1, "batch": error.batch + 1, "processes": processes}, indent=2) + "\n"


def _out_of(what: str, config: RunConfig, data: ImageDataModule, evaluated: bool) -> str:
    """The message for an out-of-memory error, with a setting that needs less memory."""
    batch, passes = data.batch_size, config.trainer.accumulate_grad_batches
    message = f"out of {what} with {count(batch, 'image')} at a time in each process"
    factor = next((n for n in range(2, batch + 1) if batch % n == 0), None)
    if factor is None:
        return f"{message}; use a smaller model or smaller images"
    if evaluated:
        return f"{message}; add data.batch_size={batch // factor} to the command"
    return (
        f"{message}; trainer.accumulate_grad_batches={passes * factor} takes {batch // factor} at a time "
        f"and keeps recipe.batch_size={config.recipe.batch_size}"
    )
