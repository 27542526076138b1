"""Features of a frozen backbone for all images of a data set, computed once and kept on disk.

A folder of the store holds, for the training and the validation images in their order, the inputs of a head as
memory-mapped arrays and the labels: ``train-0.npy``, ``train-labels.npy``, ``val-0.npy``, ... Its name is a hash of
all that determines them. It is written under another name first, so a folder is always complete.
"""

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from noah_lightning.config.schema import RunConfig
from noah_lightning.data.datamodule import ImageDataModule, LabeledImages
from noah_lightning.data.subsets import file_of
from noah_lightning.errors import RunFailed, one_line
from noah_lightning.loggers.progress import progress

log = logging.getLogger("noah_lightning")

Extract = Callable[[Tensor], tuple[Tensor, ...]]  # images uint8 (B, 3, H, W) to the inputs of a head
SPLITS = ("train", "val")
FACTS = "computed.json"  # in a folder of the store: images, bytes and seconds
SAMPLED = 64  # images that identify a data set whose images are not files


@dataclass(frozen=True)
class Features:
    """Inputs of a head for the images of one split: arrays (images, ...), and the labels (images, ...).

    With ``numbers`` it is a subset of the images in the arrays.
    """

    inputs: tuple[np.ndarray, ...]
    labels: np.ndarray
    numbers: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels if self.numbers is None else self.numbers)

    def subset(self, numbers: np.ndarray) -> "Features":
        """The images with these numbers, in this order."""
        return Features(self.inputs, self.labels, numbers if self.numbers is None else self.numbers[numbers])

    def batch(self, numbers: Sequence[int] | np.ndarray) -> tuple[tuple[Tensor, ...], Tensor]:
        """Inputs (B, ...) and labels (B, ...) of the images with these numbers."""
        chosen = np.asarray(numbers) if self.numbers is None else self.numbers[np.asarray(numbers)]
        inputs = tuple(torch.from_numpy(array[chosen]) for array in self.inputs)
        return inputs, torch.from_numpy(self.labels[chosen])


class FeatureStore:
    """Folder of stored features of limited size.

    Args:
        folder: created when something is stored.
        limit: bytes that all features in it may take; the least recently used ones are removed for new ones.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit

    def get(self, key: str, data: ImageDataModule, extract: Extract) -> dict[str, Features] | None:
        """The features of both splits, by "train" and "val", stored now unless they were stored before.

        None if they do not fit into the limit or on the disk; the reason is logged.

        Raises:
            RunFailed: they cannot be written.
        """
        path = self.folder / key
        if not path.is_dir():
            size = self._needed(data, extract)
            where, gigabytes = f"in {self.folder}", f"{size / 1e9:,.2f} GB"
            if reason := self._no_room(size):
                log.info("features %s, %s: computed again for every batch", gigabytes, reason)
                return None
            log.info("features %s will be written %s", gigabytes, where)
            try:
                self._write(path, data, extract, size)
            except OSError as error:
                raise RunFailed(f"{self.folder} cannot be written ({one_line(error)})") from error
        else:
            log.info("features read from %s", path)
        os.utime(path)  # used now
        return {split: self._read(path, split) for split in SPLITS}

    def facts(self, key: str) -> dict[str, Any]:
        """Images, bytes and seconds of features in the store, as they were computed; {} where it is not known."""
        path = self.folder / key / FACTS
        facts: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
        return facts

    def _needed(self, data: ImageDataModule, extract: Extract) -> int:
        """Bytes of the features of all images, from those of one."""
        image = data.val_dataset[0][0]  # type: ignore[index]
        each = sum(tensor[0].nbytes for tensor in extract(image[None]))
        return each * sum(len(dataset) for dataset in _datasets(data).values())

    def _no_room(self, size: int) -> str:
        """Why ``size`` bytes cannot be stored, or "" after room has been made."""
        if size > self.limit:
            return f"more than the limit of {self.limit / 1e9:g} GB (hydra.launcher.store_gb)"
        self.folder.mkdir(parents=True, exist_ok=True)
        stored = sorted(
            (path for path in self.folder.iterdir() if path.is_dir() and not path.name.startswith(".")),
            key=lambda path: path.stat().st_mtime,
        )
        sizes = {path: sum(file.stat().st_size for file in path.iterdir()) for path in stored}
        for path in stored:
            if sum(sizes.values()) + size <= self.limit:
                break
            log.info("features %s removed, used last of all", path)
            shutil.rmtree(path, ignore_errors=True)
            del sizes[path]
        free = shutil.disk_usage(self.folder).free
        return f"{free / 1e9:,.2f} GB free in {self.folder}" if size > free else ""

    def _write(self, path: Path, data: ImageDataModule, extract: Extract, size: int) -> None:
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        started = time.perf_counter()
        partial.mkdir(parents=True)
        images = sum(map(len, _datasets(data).values()))
        try:
            with progress("features", images) as done:
                for split, dataset in _datasets(data).items():
                    _write_split(partial, split, data, dataset, extract, done)
            seconds = time.perf_counter() - started
            (partial / FACTS).write_text(json.dumps({"images": images, "bytes": size, "seconds": seconds}))
            if not path.is_dir():  # else another process was faster
                partial.rename(path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _read(self, path: Path, split: str) -> Features:
        files = sorted(path.glob(f"{split}-[0-9].npy"))
        arrays = tuple(np.load(file, mmap_mode="r", allow_pickle=False) for file in files)
        return Features(arrays, np.load(path / f"{split}-labels.npy", allow_pickle=False))


def _datasets(data: ImageDataModule) -> dict[str, LabeledImages]:
    train, val = data.train_dataset, data.val_dataset
    assert train is not None, "call setup first"
    assert val is not None
    return {"train": train, "val": val}


def in_order(data: ImageDataModule, dataset: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """All images (B, 3, H, W) of a data set and their labels, in order."""
    yield from DataLoader(dataset, data.batch_size, num_workers=data.num_workers)


def _write_split(
    folder: Path,
    split: str,
    data: ImageDataModule,
    dataset: LabeledImages,
    extract: Extract,
    advance: Callable[[], None],
) -> None:
    arrays: list[np.ndarray] = []
    labels, done, count = [], 0, len(dataset)
    for images, targets in in_order(data, dataset):
        inputs = [tensor.cpu().numpy() for tensor in extract(images)]
        if not arrays:
            arrays = [
                np.lib.format.open_memmap(folder / f"{split}-{i}.npy", "w+", part.dtype, (count, *part.shape[1:]))
                for i, part in enumerate(inputs)
            ]
        for array, part in zip(arrays, inputs, strict=True):
            array[done : done + len(part)] = part
        labels.append(targets.numpy())
        done += len(images)
        for _ in images:
            advance()
    for array in arrays:
        array.flush()  # type: ignore[attr-defined]  # memory-mapped
    np.save(folder / f"{split}-labels.npy", np.concatenate(labels))


def key_of(model: nn.Module, head: nn.Module, config: RunConfig, images: str) -> str:
    """Hash of all that determines the features: frozen weights, data settings, images, precision, torch.

    ``images`` is their :func:`fingerprint`.
    """
    digest = hashlib.sha256()
    trained = {id(tensor) for tensor in head.state_dict(keep_vars=True).values()}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in trained:
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    kind = [type(model).__name__, getattr(head, "reads_class_token", False)]
    facts = {
        "model": [config.model.name, config.model.args, *kind],
        "data": config.data.arguments("batch_size", "num_workers"),
        "images": images,
        "torch": [torch.__version__, config.trainer.precision],
    }
    digest.update(json.dumps(facts, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:32]


def fingerprint(data: ImageDataModule) -> str:
    """Hash of the images of both splits: path, size and time of each file; without files, pixels of some images."""
    digest = hashlib.sha256()
    for dataset in _datasets(data).values():
        count = len(dataset)
        digest.update(str(count).encode())
        if file_of(dataset, 0):
            for number in range(count):
                file = file_of(dataset, number)
                assert file is not None
                facts = file.stat()
                digest.update(f"{file} {facts.st_size} {facts.st_mtime_ns}".encode())
            continue
        for number in range(0, count, max(1, count // SAMPLED)):
            image, label = dataset[number]
            digest.update(image.numpy().tobytes() + str(label).encode())
    return digest.hexdigest()
