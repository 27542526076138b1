"""Format of a pack, which holds the images of a folder tree in a few large files.

    OUT/train-000000.tar, …, OUT/val-000000.tar, …    shards, tar archives in WebDataset's convention
    OUT/train.npz, OUT/val.npz                        position of each image
    OUT/pack.json                                     classes and counts

Each image has two members in a shard: 000000123.jpg, the bytes of its file, and 000000123.cls, its label in digits.
An image is read as a range of bytes of a shard; nothing is unpacked, and no name in a shard is used. Torch is not
imported here, because the classes are counted while the configuration is composed.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from noah_lightning.data.tree import given_root
from noah_lightning.errors import DataError, one_line, shell_word

FACTS = "pack.json"
SPLITS: tuple[Literal["train", "val"], ...] = ("train", "val")
FORMAT, VERSION = "noah_lightning pack", 1
COPY_AGAIN = "copy or make the pack again"  # advice for a damaged file


@dataclass(frozen=True)
class Index:
    """Positions of the N images of one split, in packed order."""

    ends: NDArray[np.int64]  # (S,) cumulative number of images at the end of each shard
    shard_bytes: NDArray[np.int64]  # (S,) size of each shard
    offsets: NDArray[np.int64]  # (N,) offset of each image in its shard
    sizes: NDArray[np.int64]  # (N,) bytes of each image
    checksums: NDArray[np.uint32]  # (N,) CRC-32 of each image
    labels: NDArray[np.int32]  # (N,)

    def __len__(self) -> int:
        return len(self.labels)

    def write(self, file: BinaryIO) -> None:
        np.savez(file, allow_pickle=False, **vars(self))


def shard_name(split: str, number: int) -> str:
    return f"{split}-{number:06}.tar"


def unfinished(root: Path) -> Path:
    """Name of the folder ``root`` while it is being packed."""
    return root.with_name(f"{root.name}.unfinished")


def count_packed_classes(root: str | None) -> int:
    """Number of classes of a pack; raises what :func:`given_root` and :func:`read_facts` do."""
    return len(read_facts(given_root(root))["classes"])


def read_facts(root: Path) -> Mapping[str, Any]:
    """Content of pack.json; "classes" are in label order. Raises DataError unless it is a complete pack."""
    file = root / FACTS
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"data.root={root} {_not_a_pack(root)}") from None
    except (OSError, RecursionError, ValueError) as error:
        raise DataError(f"{file} cannot be read ({one_line(error)}): pack the images again") from error
    if not isinstance(facts, dict) or facts.get("format") != FORMAT or not isinstance(facts.get("classes"), list):
        raise DataError(f"{file} was not written by noah pack: choose another data.root=…")
    if facts.get("version") != VERSION:
        raise DataError(f"{root} is a pack of version {facts.get('version')}, this program reads version {VERSION}")
    return facts


def _not_a_pack(root: Path) -> str:
    if (root / "train").is_dir():
        return f"is a folder tree: add data=imagefolder, or pack it with noah pack {shell_word(root)} OUT"
    if root.exists():
        what = "has no pack.json" if root.is_dir() else "is not a folder"
        return f"{what}: it must be a folder written by noah pack"
    if unfinished(root).exists():
        return "is an incomplete pack: run its noah pack command again"
    return f"does not exist: noah pack TREE {shell_word(root)} creates it from a folder tree"


def read_index(root: Path, split: str) -> Index:
    """Read the positions of the images of a split, and check the size of each shard without reading its content.

    Raises DataError if a file is missing or damaged.
    """
    facts = read_facts(root)
    file = root / f"{split}.npz"
    try:
        with np.load(file, allow_pickle=False) as arrays:
            index = Index(*(arrays[name] for name in Index.__dataclass_fields__))
        consistent = _is_consistent(index, len(facts["classes"]), facts["splits"][split]["images"])
    except Exception as error:  # numpy and zipfile raise several unrelated types for broken files
        raise DataError(f"{file} cannot be read ({one_line(error)}): {COPY_AGAIN}") from error
    if not consistent:
        raise DataError(f"{file} is damaged: {COPY_AGAIN}")
    for number, size in enumerate(index.shard_bytes.tolist()):
        shard = root / shard_name(split, number)
        try:
            found = shard.stat().st_size
        except OSError as error:
            raise DataError(f"{shard} cannot be read ({error.strerror}): {COPY_AGAIN}") from error
        if found != size:
            raise DataError(f"{shard} has {found:,} bytes, not {size:,}: {COPY_AGAIN}")
    return index


def _is_consistent(index: Index, classes: int, images: int) -> bool:
    """Whether every image lies within its shard and has a valid label."""
    if any(array.ndim != 1 or not np.can_cast(array.dtype, np.int64) for array in vars(index).values()):
        return False
    shards = np.diff(index.ends, prepend=0)
    if len(index.ends) != len(index.shard_bytes) or (shards < 1).any() or shards.sum() != images:
        return False
    if {len(index.offsets), len(index.sizes), len(index.checksums), len(index.labels)} != {images}:
        return False
    room = np.repeat(index.shard_bytes, shards)
    inside = (index.offsets >= 0) & (index.sizes >= 0) & (index.sizes <= room) & (index.offsets <= room - index.sizes)
    return bool(inside.all() and (index.labels >= 0).all() and (index.labels < classes).all())
