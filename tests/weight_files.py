"""Models with weights that no constructor would draw, and files of weights."""

from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

HEADS = ["gap", "noah"]


def trained(name: str, num_classes: int = 10, **model_args) -> nn.Module:
    """timm's model with weights that no constructor would draw."""
    torch.manual_seed(1)
    model = timm.create_model(name, num_classes=num_classes, **model_args).eval()
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand_like(value) * 0.2 + 0.1)  # positive, for the running variances
    return model


def images_for(name: str) -> Tensor:
    torch.manual_seed(2)
    return torch.randn(2, *timm.get_pretrained_cfg(name).input_size)


def write(state: dict[str, Tensor], path: Path, layout: str = "bare") -> str:
    if layout == "safetensors":
        save_file(state, path)
    else:
        torch.save({"bare": state, "state_dict": {"epoch": 3, "state_dict": state}}[layout], path)
    return str(path)


def assert_same_weights(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []
