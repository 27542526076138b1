"""What a module costs, found by running it without memory or arithmetic (on the ``meta`` device)."""

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def multiply_adds(module: nn.Module, *shapes: tuple[int, ...]) -> int:
    """Multiply-adds of convolutions and matrix products in one forward pass over inputs of these shapes.

    ``module`` must be on the ``meta`` device.
    """
    module.eval()
    with FlopCounterMode(display=False) as counter:  # without no_grad, which its hooks cannot always take
        module(*(torch.empty(shape, device="meta") for shape in shapes))
    return int(counter.get_total_flops()) // 2


def kept_for_backward(module: nn.Module, *shapes: tuple[int, ...]) -> int:
    """Bytes that a training step keeps between forward and backward for each sample of these shapes (float32).

    ``module`` must be on the ``meta`` device. Parameters are kept once for all samples and do not count.
    """
    module.train()
    return _kept(module, 2, shapes) - _kept(module, 1, shapes)


def _kept(module: nn.Module, batch: int, shapes: tuple[tuple[int, ...], ...]) -> int:
    storages: dict[int, torch.UntypedStorage] = {}  # views share one

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage  # held, so that no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        module(*(torch.empty(batch, *shape, device="meta", requires_grad=True) for shape in shapes))
    return sum(storage.nbytes() for storage in storages.values())
