"""Losses and gradients that are not finite: found without making the device wait at each step, or left out."""

import logging
import math
from collections.abc import Mapping

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from noah_lightning.distributed.collectives import of_every_process
from noah_lightning.errors import RunFailedEverywhere

log = logging.getLogger("noah_lightning")
MOST_IN_A_ROW = 20  # float16's scaler, too, needs no more to find its scale
_NONE = [math.inf, 0.0]


class NonFinite(RunFailedEverywhere):
    """Training met a loss or a gradient that is not finite.

    Attributes:
        epoch, batch: where, counted from 0.
        losses: of that batch, by the number of the process that met it: ``nan``, ``inf``, ``-inf`` or ``finite``.
    """

    def __init__(self, epoch: int, batch: int, what: str, losses: Mapping[int, str]) -> None:
        super().__init__(f"epoch {epoch + 1}, batch {batch + 1}: the {what}")
        self.epoch, self.batch, self.losses = epoch, batch, losses


class LossWatch:
    """The losses of the batches since the device was last waited for; they stay where they are until then."""

    def __init__(self) -> None:
        self._unread: list[tuple[int, Tensor]] = []

    def see(self, batch: int, loss: Tensor) -> None:
        """Note the loss () of a batch."""
        self._unread.append((batch, loss))

    def check(self, task: pl.LightningModule) -> None:
        """Look at what there is, in all processes at the same time; each of them then knows of the others.

        Raises:
            NonFinite: the first loss that is not finite.
        """
        found = of_every_process(self._first(), task)
        batch = min(number for number, _ in found)
        if batch < math.inf:
            losses = {number: str(loss) for number, (first, loss) in enumerate(found) if first == batch}
            raise NonFinite(task.current_epoch, int(batch), f"loss is {min(losses.values())}", losses)

    def check_all(self, task: pl.LightningModule) -> None:
        """Look at the losses and the weights; to be done before anything of a run is saved.

        Raises:
            NonFinite: a loss or a weight is not finite.
        """
        self.check(task)
        if not _finite(list(task.parameters())):  # since the latest step, or a loss would have told
            every = dict.fromkeys(range(task.trainer.world_size), "finite")
            raise NonFinite(task.current_epoch, task.trainer.fit_loop.batch_idx, "gradient is not finite", every)

    def _first(self) -> list[float]:
        """[batch, loss] of the first one that is not finite, or [inf, 0]; those read are forgotten."""
        unread, self._unread = self._unread, []
        if not unread:
            return _NONE
        losses = torch.stack([loss.float() for _, loss in unread]).tolist()
        found = ([batch, loss] for (batch, _), loss in zip(unread, losses, strict=True) if not math.isfinite(loss))
        return next(found, _NONE)


class StepGuard:
    """Leaves out the optimiser steps whose gradient is not finite, as if their batches had not been there.

    DDP has averaged the gradients, so all processes decide alike. Each step waits for the device once.

    Attributes:
        left_out: whether the latest step was.
        total, in_a_row: how many were, and how many without one in between that was not.
    """

    def __init__(self) -> None:
        self.left_out = False
        self.total = self.in_a_row = 0
        self._kept: list[Tensor] = []

    def keep(self, model: nn.Module) -> None:
        """Remember what forward passes change: the averages of batch norm would never be rid of a NaN."""
        self._kept = [buffer.clone() for buffer in model.buffers()]

    def look(self, model: nn.Module, scaled: bool, epoch: int, batch: int) -> None:
        """Judge the gradients of a step. ``scaled``: float16's scaler will leave the step out by itself.

        Raises:
            RunFailedEverywhere: nothing but such steps.
        """
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        self.left_out = not _finite(gradients)
        if not self.left_out:
            self.in_a_row = 0
            return
        self.total += 1
        self.in_a_row += 1
        where = f"epoch {epoch + 1}, batch {batch + 1}"
        if self.in_a_row > MOST_IN_A_ROW:
            raise RunFailedEverywhere(
                f"{where}: no finite gradient for {MOST_IN_A_ROW} steps in a row; try a smaller recipe.optimizer.lr, "
                "recipe.gradient_clip=1 or trainer.precision=bf16-mixed"
            )
        log.warning("%s: the loss or gradient is not finite; step left out, %d so far", where, self.total)
        for buffer, kept in zip(model.buffers(), self._kept, strict=True):
            buffer.copy_(kept)
        if not scaled:
            model.zero_grad()  # torch's optimisers pass over what has no gradient: no momentum, no weight decay


def _finite(tensors: list[Tensor]) -> bool:
    """Whether all elements are; waits for the device."""
    return bool(get_total_norm(tensors, norm_type=math.inf).isfinite())  # the largest: no sum that could overflow
