"""Data modules, created by name.

Nothing heavy is imported before :func:`create_data` is called, so that a typo in the command is reported at once.
"""

from collections.abc import Callable
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, TypeVar

from noah_lightning.config.parsing import parse
from noah_lightning.config.plugins import load_installed_plugins
from noah_lightning.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from noah_lightning.data.datamodule import ImageDataModule

DataModuleClass = TypeVar("DataModuleClass", bound=type["ImageDataModule"])

# data.name -> class, or "file:class" in this package
REGISTRY: dict[str, "str | type[ImageDataModule]"] = {
    "digits": "digits:DigitsDataModule",
    "fashion_mnist": "mnist:FashionMNISTDataModule",
    "digits_multilabel": "digits_multilabel:DigitsMultilabelDataModule",
    "imagefolder": "imagefolder:ImageFolderDataModule",
    "imagenet": "imagefolder:ImageNetDataModule",
    "mnist": "mnist:MNISTDataModule",
    "packed": "packed:PackedDataModule",
    "coco": "coco:CocoDataModule",
}
# data.name -> function of data.root that counts the classes, as in conf/data/
_COUNT_CLASSES = {"imagefolder": "tree:count_classes", "packed": "pack_format:count_packed_classes"}


def register_data(name: str) -> Callable[[DataModuleClass], DataModuleClass]:
    """Class decorator for plug-ins: register a subclass of :class:`ImageDataModule` as ``data.name=<name>``.

    Its ``Settings`` (a subclass of ``DataSettings``) define the settings in ``data``. Registering a name twice is a
    ``ConfigError``.
    """

    def add(module_class: DataModuleClass) -> DataModuleClass:
        if name in REGISTRY:
            raise ConfigError(f"a plug-in registers the data set {name!r}, which exists already")
        REGISTRY[name] = module_class
        return module_class

    return add


def create_data(name: str, **settings: Any) -> "ImageDataModule":
    """The data module ``name`` with ``settings``, and the defaults of ``conf/data/`` for the others.

    Raises:
        ConfigError: an unknown name, an unknown or missing setting, or a value out of range.
        DataError: ``root`` is required and not set.
    """
    if name not in REGISTRY:
        load_installed_plugins()
    if name not in REGISTRY:
        raise ConfigError(f"data.name={name!r} is not one of {', '.join(REGISTRY)}{did_you_mean(name, REGISTRY)}")
    if name in _COUNT_CLASSES and "num_classes" not in settings:
        settings["num_classes"] = resolve_name(f"{__name__}.{_COUNT_CLASSES[name]}")(settings.get("root"))
    module_class = REGISTRY[name]
    if isinstance(module_class, str):
        module_class = resolve_name(f"{__name__}.{module_class}")
    return module_class(parse(module_class.Settings, {"name": name, **settings}, "data"))
