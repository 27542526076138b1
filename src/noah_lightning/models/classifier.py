"""Image classifiers: a backbone joined with a head, as code, a configuration or a run directory describes them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException

from noah_lightning.config.heads import GapHeadSettings
from noah_lightning.config.parsing import parse
from noah_lightning.config.schema import RunConfig
from noah_lightning.errors import ConfigError, WeightsError, one_line
from noah_lightning.heads import head_class, make_head
from noah_lightning.heads.base import Explanation
from noah_lightning.models.feature_extractor import FeatureMapBackbone, make_backbone
from noah_lightning.models.timm_models import build_timm_model
from noah_lightning.models.weights import read_weights
from noah_lightning.run_dir import CHECKPOINTS, CONFIG

# timm's arguments that are set elsewhere, choose the weights, or make something other than a model.
_NOT_TIMMS_TO_SET = {
    *("num_classes", "in_chans", "pretrained", "checkpoint_path"),
    *("pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict", "cache_dir", "model_name"),
    *("features_only", "feature_cls", "feature_cfg", "out_indices", "scriptable", "exportable", "no_jit"),
}


class Classifier(nn.Module):
    """A head over a backbone's features: images (B, 3, H, W) → logits (B, K)."""

    def __init__(self, backbone: FeatureMapBackbone, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def features(self, images: Tensor) -> tuple[Tensor, ...]:
        """What the head reads: the features (B, C, L), and for a head that wants it the class token (B, C)."""
        if getattr(self.head, "reads_class_token", False):
            return self.backbone.with_class_token(images)
        return (self.backbone(images),)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(*self.features(images))

    def explain(self, images: Tensor) -> Explanation:
        """The logits with the attention and the contribution of every position; TypeError for a head without."""
        if not hasattr(self.head, "explain"):
            raise TypeError(f"{type(self.head).__name__} does not explain its logits")
        head: Any = self.head
        return head.explain(*self.features(images))

    def no_weight_decay(self) -> set[str]:
        """Parameter names that weight decay should spare, as the backbone's authors do."""
        return {f"backbone.{name}" for name in self.backbone.no_weight_decay()}


def create_model(
    name: str,
    head: str = "gap",
    num_classes: int = 1000,
    pretrained: bool = False,
    *,
    weights: str | None = None,
    image_size: int | None = None,
    class_token: bool | None = None,
    backbone_init: str = "timm",
    model_args: Mapping[str, Any] | None = None,
    **head_settings: Any,
) -> nn.Module:
    """Any timm model with its own classifier (``head="gap"``) or with one of ours.

    ``head="gap"`` returns ``timm.create_model(name, num_classes=num_classes)`` untouched. Every other head replaces
    what the model does from its pooling on.

    Args:
        name: a timm model name.
        head: ``gap``, ``noah``, or another registered head.
        num_classes: K.
        pretrained: start from timm's pretrained weights.
        weights: start from a local file instead, or from a folder such as that of a run: what
            :func:`~noah_lightning.models.weights.read_weights` reads, with timm's names, or torchvision's where they
            are the same or in the same order. The model's ``weights_from`` says in one line what was loaded.
        image_size: side of the square input in pixels, for models built for one size; None keeps theirs.
        class_token: whether a ViT under another head than ``gap`` keeps its class token; None: only where loaded
            weights were trained with it.
        backbone_init: rule of the backbone's starting weights where none are loaded: ``timm``, or ``official``: as
            the official code of NOAH starts the paper's models.
        model_args: further arguments for timm's constructor.
        **head_settings: settings of the head, such as ``head_num`` and ``key_ratio``; ``gap`` has only ``dropout``,
            before the classifier.

    Raises:
        UserError: a subclass of it, in one line: unknown model or head, impossible settings, no spatial map,
            weights that do not fit.

    >>> create_model("resnet18", head="noah", num_classes=10, head_num=4, key_ratio=0.5)
    """
    model_args = dict(model_args or {})
    if owned := sorted(_NOT_TIMMS_TO_SET & model_args.keys()):
        raise ConfigError(
            f"model.args cannot set {', '.join(owned)}: images have 3 channels, the data has the number of classes, "
            "and weights come from model.pretrained or model.weights"
        )
    loaded = read_weights(weights) if weights else None
    model: Any
    if head == "gap":
        if class_token is not None:
            raise ConfigError("head=gap is the published model, class token and all; leave class_token unset")
        if unknown := [key for key in head_settings if key != "dropout"]:
            raise ConfigError(
                f"head=gap is the model's own classifier and has no setting {', '.join(unknown)}, only dropout; "
                "create_model takes the settings of NOAH with head='noah'"
            )
        if dropout := parse(GapHeadSettings, head_settings, "head").dropout:
            model_args.setdefault("drop_rate", dropout)
        model = build_timm_model(name, num_classes, pretrained, loaded, image_size, backbone_init, **model_args)
        if loaded:
            model.weights_from = loaded.describe(model.pretrained_cfg["num_classes"] == num_classes)
        return model
    reads_token = getattr(head_class(head), "reads_class_token", False)
    start: dict[str, Any] = {"pretrained": pretrained, "weights": loaded, "init": backbone_init}
    backbone = make_backbone(
        name, image_size=image_size, class_token=class_token, reads_class_token=reads_token, **start, **model_args
    )
    model = Classifier(backbone, make_head(head, backbone.out_channels, num_classes, **head_settings))
    if loaded:
        model.weights_from = loaded.describe(loaded.load_head(model.head))
    return model


def build_model(config: RunConfig) -> nn.Module:
    """The model that a configuration describes; raises what :func:`create_model` raises."""
    regularization = {"drop_path_rate": config.recipe.drop_path, "proj_drop_rate": config.recipe.block_dropout}
    return create_model(
        name=config.model.name,
        head=config.head.name,
        num_classes=config.data.num_classes,
        pretrained=config.model.pretrained,
        weights=config.model.weights,
        image_size=config.data.image_size,
        class_token=config.model.class_token,
        backbone_init=config.model.init,
        # What a recipe asks of the inside of the model, as timm calls it; models that lack it refuse it.
        model_args={name: rate for name, rate in regularization.items() if rate} | config.model.args,
        **config.head.arguments("name"),
    )


def load_model(run_dir: Path, config: RunConfig, checkpoint: str = "best", ema: bool = False) -> nn.Module:
    """The run's model with the weights of its ``best`` or ``last`` checkpoint, in evaluation mode.

    With ``ema`` it has the average of the weights instead, and ``best`` is the epoch that was best for the average.

    Raises:
        WeightsError: the checkpoint is missing, unreadable or of another model, or the run has no average.
    """
    if ema and config.recipe.ema is None:
        raise WeightsError(f"{run_dir} has no average of the weights: it was trained with recipe.ema=null")
    name = "best_ema" if ema and checkpoint == "best" else checkpoint
    path = run_dir / CHECKPOINTS / f"{name}.ckpt"
    if not path.is_file():
        raise WeightsError(f"there is no checkpoint {path}")
    weights, class_token = read_weights(path, averaged=ema), config.model.class_token
    if class_token is None and config.head.name != "gap":  # as :func:`make_backbone` chose it
        class_token = weights.class_token
    # The same architecture without fetching the weights it once started from.
    model = build_model(config.replace("model", pretrained=False, weights=None, class_token=class_token))
    try:
        model.load_state_dict(weights.state)
    except RuntimeError as error:
        raise WeightsError(f"{path} does not fit the model in {run_dir / CONFIG}: {one_line(error)}") from error
    return model.eval()


@contextmanager
def compiled(model: nn.Module, wanted: bool) -> Iterator[None]:
    """Compile the model in place, where that is wanted; torch does so at the first calls, which belong within.

    Raises:
        ConfigError: torch cannot compile it, for lack of a compiler for instance.
    """
    if not wanted:
        yield
        return
    model.compile()  # in place keeps its class and the names of its weights, and so its checkpoints
    try:
        yield
    except TorchDynamoException as error:
        what = one_line(error).partition(" Set TORCHDYNAMO_VERBOSE")[0]  # advice for torch's developers
        raise ConfigError(f"trainer.compile=true: {what}; trainer.compile=false trains without") from error
