"""What can give out under way, told in a line that says how to go on."""

import errno
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from noah_lightning.atomic_io import write_whole
from noah_lightning.config.schema import RunConfig
from noah_lightning.data.datamodule import ImageDataModule
from noah_lightning.distributed.environment import rank
from noah_lightning.errors import RunFailed, RunFailedEverywhere, one_line
from noah_lightning.run_dir import NONFINITE
from noah_lightning.task.nonfinite import NonFinite

DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)  # what is worth a line of its own, is told


@contextmanager
def faults_told(config: RunConfig, data: ImageDataModule, run_dir: Path) -> Iterator[None]:
    """Turn what torch says of memory and of loading processes into a line of our own, and note what was not finite.

    Raises:
        RunFailed: memory or a loading process gave out, or a loss or gradient was not finite.
    """
    try:
        yield
    except NonFinite as error:
        if rank() == 0:
            told = _offenders(data, error).encode()
            with suppress(OSError):  # a full disk
                write_whole(run_dir / NONFINITE, lambda file: file.write(told))
        raise RunFailedEverywhere(
            f"{error}; its images are in {NONFINITE}, the last checkpoint is from before it; try a smaller "
            "recipe.optimizer.lr, recipe.gradient_clip=1 or trainer.nonfinite=skip, which leaves such steps out"
        ) from error
    except OSError as error:
        if error.errno not in DISK:
            raise
        raise RunFailed(f"the disk fails ({one_line(error)}); make room, then noah resume {run_dir}") from error
    except torch.OutOfMemoryError as error:
        raise RunFailed(_smaller(config, data, "GPU memory")) from error
    except RuntimeError as error:
        text = one_line(error)
        if "DefaultCPUAllocator" in text:
            raise RunFailed(_smaller(config, data, "memory")) from error
        if text.startswith("DataLoader worker"):
            raise RunFailed(
                f"a process that loads images died, for want of memory perhaps: {text}; noah resume goes on, "
                "data.num_workers sets their number"
            ) from error
        raise


def _offenders(data: ImageDataModule, error: NonFinite) -> str:
    """Where it was, and the images of that batch: their order can be told again for each process."""
    processes = []
    for number, loss in error.losses.items():
        _, images = next(iter(data.train_batches(error.epoch, number, error.batch)))
        found = [{"number": image, "file": str(data.train_file(image) or "")} for image in images]
        processes.append({"process": number, "loss": loss, "images": found})
    told = {"epoch": error.epoch + 1, "batch": error.batch + 1, "processes": processes}
    return json.dumps(told, indent=2) + "\n"


def _smaller(config: RunConfig, data: ImageDataModule, what: str) -> str:
    """What would fit better."""
    batch, passes = data.batch_size, config.trainer.accumulate_grad_batches
    told = f"out of {what} with {batch} images at a time in each process"
    halves = next((n for n in range(2, batch + 1) if batch % n == 0), None)
    if halves is None:
        return f"{told}; a smaller model or smaller images would fit"
    return (
        f"{told}; trainer.accumulate_grad_batches={passes * halves} takes {batch // halves} at a time "
        f"and keeps recipe.batch_size={config.recipe.batch_size}"
    )
