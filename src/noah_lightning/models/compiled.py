"""``trainer.compile=true``: the model as compiled by torch."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch._dynamo.exc import TorchDynamoException

from noah_lightning.errors import ConfigError, one_line


@contextmanager
def compiled(model: nn.Module, wanted: bool) -> Iterator[None]:
    """From here on calls of the model run compiled, where that is wanted.

    It is compiled in place, which leaves its class and the names of its weights alone: checkpoints are those of any
    other run. The work is done at the first calls, so they belong within.

    Raises:
        ConfigError: torch cannot compile it, for want of a compiler for instance.
    """
    if not wanted:
        yield
        return
    model.compile()
    try:
        yield
    except TorchDynamoException as error:
        what = one_line(error).partition(" Set TORCHDYNAMO_VERBOSE")[0]  # advice for torch's developers
        raise ConfigError(f"trainer.compile=true: {what}; trainer.compile=false trains without") from error
