"""Benchmark of data loading: training images per second, compared with torchvision's reference pipeline."""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch.utils.data import DataLoader, Subset
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import pil_loader

from benchmarks.report import Report, at_least, make_parser, run
from benchmarks.timing import alternate, ratio, spread
from noah_lightning.analysis.tables import Table
from noah_lightning.config.choices import AugmentSettings
from noah_lightning.data.imagefolder import FolderImages
from noah_lightning.data.transforms import OnDevice, train_transform

SIZE = 224  # pixels
BATCH = 64
PHOTOGRAPHS = 512  # in the generated folder tree, and per round
OFFICIAL, OURS, NORMALIZED = "torchvision, PIL", "noah_lightning", "noah_lightning, then normalized"


def bench_data(root: Path | None, workers: int, rounds: int) -> Report:
    """Load the same photographs through both pipelines alternately, from files to batches.

    torchvision's pipeline yields normalized floats. Ours yields bytes, which the training device normalizes; the
    third row includes the normalization on this CPU.

    Args:
        root: folder with train/<class>/, of which 512 images are loaded; None to generate photographs.
        workers: DataLoader workers; 0 to load in the main process.
        rounds: number of measurements of each pipeline.

    Raises:
        DataError: there are no class folders in root/train, or an image cannot be read.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_one_thread())
        if root is None:
            root = Path(stack.enter_context(TemporaryDirectory(prefix="noah_bench_")))
            make_photographs(root, PHOTOGRAPHS)
        own = _loader(ours(root), workers)  # first, because it reports user errors in one line
        theirs = _loader(official(root), workers)
        seen: dict[str, int] = {}
        work: dict[str, Callable[[], object]] = {
            OFFICIAL: lambda: seen.update({OFFICIAL: _drain(theirs)}),
            OURS: lambda: seen.update({OURS: _drain(own)}),
            NORMALIZED: lambda: seen.update(
                {NORMALIZED: _drain(own, OnDevice(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD).normalize)}
            ),
        }
        seconds = alternate(work, rounds)
        figures = [_figures(name, seen[name], seconds) for name in work]
        table = Table(("pipeline", "images/s", "quartiles", "× torchvision"), _rows(figures), left=("pipeline",))
        what = f"{seen[OURS]} images, {workers} workers, batches of {BATCH}, {rounds} rounds"
        return Report("data", table, [{**figure, "workers": workers} for figure in figures], [what])


def official(root: Path) -> ImageFolder:
    """torchvision's reference pipeline for ImageNet: float (3, S, S)."""
    steps = [
        transforms.RandomResizedCrop(SIZE),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
    ]
    return ImageFolder(root / "train", transforms.Compose(steps), loader=pil_loader)


def ours(root: Path) -> FolderImages:
    """The pipeline of ``data=imagefolder`` with the plain recipe: uint8 (3, S, S)."""
    return FolderImages(root, "train", train_transform(SIZE, AugmentSettings(), IMAGENET_DEFAULT_MEAN))


def make_photographs(root: Path, count: int) -> None:
    """root/train/{china,flower}/*.jpg: windows of scikit-learn's two photographs, 500 x 375 pixels, quality 95."""
    for i in range(count):
        rng = np.random.default_rng(i)
        name = ("china", "flower")[i % 2]
        width = int(rng.integers(480, 570))  # of 640 x 427
        height = round(width * 3 / 4)
        left, top = int(rng.integers(0, 641 - width)), int(rng.integers(0, 428 - height))
        image = Image.fromarray(load_sample_image(f"{name}.jpg"))
        image = image.resize((500, 375), Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))
        pixels = np.asarray(image)[:, :: rng.choice((-1, 1))]
        noisy = pixels + rng.normal(0, 3, (375, 500, 1))  # film grain, without which the files are too small
        file = root / "train" / name / f"{i}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, quality=95, subsampling="4:2:0")


def _figures(name: str, images: int, seconds: dict[str, list[float]]) -> dict[str, Any]:
    speed, times = spread([images / each for each in seconds[name]]), ratio(seconds, OFFICIAL, name)
    return {
        "pipeline": name,
        "images": images,
        "images_per_second": speed.median,
        "images_per_second_quartiles": [speed.low, speed.high],
        "ratio": times.median,
        "ratio_quartiles": [times.low, times.high],
    }


def _rows(figures: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    return [
        (
            figure["pipeline"],
            f"{figure['images_per_second']:,.0f}",
            "{:,.0f}–{:,.0f}".format(*figure["images_per_second_quartiles"]),
            "{:.2f} ({:.2f}–{:.2f})".format(figure["ratio"], *figure["ratio_quartiles"]),
        )
        for figure in figures
    ]


def _loader(dataset: Any, workers: int) -> DataLoader[Any]:
    some = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))[:PHOTOGRAPHS]
    return DataLoader(Subset(dataset, some.tolist()), BATCH, num_workers=workers, persistent_workers=workers > 0)


def _drain(loader: DataLoader[Any], then: Callable[[torch.Tensor], object] | None = None) -> int:
    """Load all images, apply ``then`` to each batch, and return the number of images."""
    count = 0
    for images, _ in loader:
        count += len(images)
        if then is not None:
            then(images)
    return count


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Use one thread, as in a DataLoader worker."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def main() -> None:
    parser = make_parser("Training images per second, compared with torchvision's reference pipeline.")
    parser.add_argument("--root", type=Path, metavar="DIR", help="folder with train/<class>/; default: generated")
    parser.add_argument(
        "--workers", type=partial(at_least, 0), default=0, metavar="N", help="DataLoader workers; default: none"
    )
    options = parser.parse_args()
    run(lambda: bench_data(options.root, options.workers, options.rounds), options.json)


if __name__ == "__main__":
    main()
