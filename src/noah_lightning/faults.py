"""What can give out under way, told in a line that says how to go on."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from omegaconf import DictConfig

from noah_lightning.data.module import ImageDataModule
from noah_lightning.errors import RunFailed, one_line


@contextmanager
def faults_told(config: DictConfig, data: ImageDataModule) -> Iterator[None]:
    """Turn what torch says of memory and of loading processes into a line of our own.

    Raises:
        RunFailed: memory or a loading process gave out.
    """
    try:
        yield
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


def _smaller(config: DictConfig, data: ImageDataModule, what: str) -> str:
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
