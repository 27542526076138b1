"""The data room: one module per kind of data set, made by name.

Nothing heavy is imported before :func:`create_data` is called, so that a typing mistake is reported at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from noah_lightning.config.parsing import parse
from noah_lightning.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from noah_lightning.data.datamodule import ImageDataModule

# data=<name> -> (file in this package, class)
REGISTRY: dict[str, tuple[str, str]] = {
    "digits": ("digits", "DigitsDataModule"),
    "imagefolder": ("imagefolder", "ImageFolderDataModule"),
    "imagenet": ("imagenet", "ImageNetDataModule"),
    "packed": ("packed", "PackedDataModule"),
}


def create_data(name: str, **settings: Any) -> "ImageDataModule":
    """The data module called ``name``, built with ``settings``; what is left out has its default.

    Raises:
        ConfigError: an unknown name, an unknown or missing setting, or a value out of range.
        DataError: ``root`` is needed and not set.
    """
    if name not in REGISTRY:
        raise ConfigError(f"data.name={name!r} is not one of {', '.join(REGISTRY)}{did_you_mean(name, REGISTRY)}")
    file, class_name = REGISTRY[name]
    module_class: type[ImageDataModule] = getattr(import_module(f"{__name__}.{file}"), class_name)
    return module_class(parse(module_class.Settings, {"name": name, **settings}, "data"))
