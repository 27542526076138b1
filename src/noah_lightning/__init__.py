"""Training and comparison of image-classification heads; reference implementation of NOAH."""

TYPE_CHECKING = False  # typing itself is imported later, where Ctrl-C can be handled
if TYPE_CHECKING:
    from noah_lightning.heads import NOAHHead
    from noah_lightning.models.classifier import create_model
    from noah_lightning.models.official_checkpoints import convert_official
    from noah_lightning.models.rows import create_row

__version__ = "0.1.0"
__all__ = ["NOAHHead", "__version__", "convert_official", "create_model", "create_row"]

_HOMES = {
    "NOAHHead": "noah_lightning.heads",
    "convert_official": "noah_lightning.models.official_checkpoints",
    "create_model": "noah_lightning.models.classifier",
    "create_row": "noah_lightning.models.rows",
}


def __getattr__(name: str) -> object:
    """Import torch and timm only when they are needed, so that the command line starts fast."""
    from importlib import import_module

    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
