"""The paper's architectures that timm lacks, registered with timm, so that they are built like any of its models."""

from collections.abc import Callable, Mapping
from typing import Any

from timm.models import DefaultCfg, build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

default_cfgs: dict[str, DefaultCfg] = {}  # where timm looks for those of the models that this module registers


def register(
    model: type[nn.Module],
    variants: Mapping[str, Mapping[str, Any]],
    adapt: Callable[..., dict[str, Tensor]] | None = None,
    **settings: Any,
) -> None:
    """Register a model for 224-pixel images, without published weights on a hub, with timm.

    Args:
        model: its class.
        variants: the constructor's arguments under the name of each variant; the caller's arguments win.
        adapt: changes a state dict so that it fits a model.
        **settings: of timm's ``pretrained_cfg``.
    """
    default_cfgs.update(generate_default_cfgs({f"{name}.untrained": settings for name in variants}))

    def add(name: str) -> None:
        def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
            arguments = {**variants[name], **kwargs}
            return build_model_with_cfg(model, name, pretrained, pretrained_filter_fn=adapt, **arguments)

        create.__name__ = name
        register_model(create)

    for name in variants:
        add(name)


class TimmStyleModel(nn.Module):
    """timm's interface to pooling and classifier, for models with ``forward_features`` and ``head_drop``."""

    classifier_name: str  # among the model's modules
    head_hidden_size: int  # width that the classifier sees
    poolings: tuple[str, ...] = ("avg", "")  # "" is none
    forward_features: Callable[[Tensor], Tensor]
    head_drop: nn.Dropout

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

    def pool(self, x: Tensor) -> Tensor:
        """What the classifier sees (B, C), from features (B, C, H, W); without pooling (B, C, H, W)."""
        return x.mean((2, 3)) if self.global_pool else x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.pool(x)
        if not self.global_pool:
            return x
        x = self.head_drop(x)
        return x if pre_logits else self.get_classifier()(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))
