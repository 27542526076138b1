"""The paper's architectures that timm lacks, registered with timm, so that they are built like any of its models."""

from collections.abc import Callable, Mapping
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import DefaultCfg, build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

default_cfgs: dict[str, DefaultCfg] = {}  # where timm looks for those of the models that this module registers
_COMMON = {"url": "", "num_classes": 1000, "input_size": (3, 224, 224), "pool_size": None, "crop_pct": 0.875}
_COMMON |= {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}


def register(model: type[nn.Module], variants: Mapping[str, Mapping[str, Any]], **settings: Any) -> None:
    """Register a model for 224-pixel images, without published weights on a hub, with timm.

    Args:
        model: its class.
        variants: the constructor's arguments under the name of each variant; the caller's arguments win.
        **settings: of timm's ``pretrained_cfg``; ``pretrained_filter_fn`` adapts weights to the model.
    """
    adapt = settings.pop("pretrained_filter_fn", None)
    default_cfgs.update(generate_default_cfgs({f"{name}.untrained": {**_COMMON, **settings} for name in variants}))

    def add(name: str) -> None:
        def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
            arguments = {**variants[name], **kwargs}
            return build_model_with_cfg(model, name, pretrained, pretrained_filter_fn=adapt, **arguments)

        create.__name__ = name
        register_model(create)

    for name in variants:
        add(name)


class TimmStyleModel(nn.Module):
    """timm's interface to classifier and pooling, for models with ``forward_features`` and ``forward_head``."""

    classifier_name: str  # among the model's modules
    head_hidden_size: int  # width that the classifier sees
    poolings: tuple[str, ...] = ("avg", "")  # "" is none
    forward_features: Callable[[Tensor], Tensor]
    forward_head: Callable[..., Tensor]

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier for ``num_classes`` (0: none), and another pooling.

        Raises:
            AssertionError: the model has no such pooling.
        """
        if global_pool is not None:
            assert global_pool in self.poolings, f"pooling must be one of {self.poolings}"
            self.global_pool = global_pool
        self.num_classes = num_classes
        classifier = nn.Linear(self.head_hidden_size, num_classes) if num_classes else nn.Identity()
        setattr(self, self.classifier_name, classifier)

    def get_classifier(self) -> Any:
        return getattr(self, self.classifier_name)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))
