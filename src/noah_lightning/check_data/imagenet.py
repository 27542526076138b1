"""A data set beside the published ImageNet (ILSVRC2012): its classes and how many images they have."""

from collections.abc import Mapping
from functools import cache

from timm.data import ImageNetInfo

from noah_lightning.check_data.findings import Findings
from noah_lightning.check_data.listing import Counts

IMAGES = {"train": 1_281_167, "val": 50_000}
PER_CLASS = {"train": (732, 1300), "val": (50, 50)}  # least and most
ENOUGH = 500  # of the 1000 classes; with fewer it is meant to be a part, such as ImageNet-100


def is_imagenet(counts: Counts) -> bool:
    """Whether these classes are ImageNet's, some missing or superfluous ones aside."""
    return len(_wnids() & {name for images_of in counts.values() for name in images_of}) >= ENOUGH


def compare_with_imagenet(counts: Counts, findings: Findings) -> None:
    """Sorted by name, as loaders do it, the classes have ImageNet's labels exactly if they are the same set."""
    for split, images_of in counts.items():
        for name in _wnids() - set(images_of):
            findings.add("imagenet-missing", f"{split}/{name}")
        for name in set(images_of) - _wnids():
            findings.add("imagenet-extra", f"{split}/{name}")
        _compare_images(split, images_of, findings)


def _compare_images(split: str, images_of: Mapping[str, int], findings: Findings) -> None:
    least, most = PER_CLASS[split]
    published = str(least) if least == most else f"{least} to {most}"
    for name, images in images_of.items():
        if name in _wnids() and images and not least <= images <= most:
            findings.add("imagenet-count", f"{split}/{name} ({images:,}, published {published})")
    total = sum(images_of.values())
    if total != IMAGES[split]:
        findings.add("imagenet-total", f"{split}/ ({total:,}, published {IMAGES[split]:,})")


@cache
def _wnids() -> frozenset[str]:
    return frozenset(ImageNetInfo().label_names())
