"""What a module costs, found by running it without memory or arithmetic (on the ``meta`` device)."""

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def multiply_adds(module: nn.Module, shape: tuple[int, ...]) -> int:
    """Multiply-adds of convolutions and matrix products in one forward pass over an input of this shape.

    ``module`` must be on the ``meta`` device.
    """
    module.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(torch.empty(shape, device="meta"))
    return int(counter.get_total_flops()) // 2


def kept_for_backward(module: nn.Module, shape: tuple[int, ...]) -> int:
    """Bytes that a training step keeps between forward and backward for each sample of shape ``shape`` (float32).

    ``module`` must be on the ``meta`` device. Parameters are kept once for all samples and do not count.
    """
    module.train()
    return _kept(module, (2, *shape)) - _kept(module, (1, *shape))


def _kept(module: nn.Module, shape: tuple[int, ...]) -> int:
    storages: dict[int, torch.UntypedStorage] = {}  # views share one

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage  # held, so that no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        module(torch.empty(shape, device="meta", requires_grad=True))
    return sum(storage.nbytes() for storage in storages.values())
