"""The index of a split folder, kept from one start to the next in the user's cache folder.

Looking through ImageNet takes minutes on a network disk; asking its thousand folders whether they have changed takes
a moment. Nothing is ever written into the data itself.
"""

import hashlib
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS

from noah_lightning.data.index import Names, TreeIndex, scan, unchanged

VERSION = 1
# Two changes within one tick of the file system's clock look like one. A tree that has just been changed may change
# again within the tick, so its index is not kept; the coarsest clock in use, FAT's, ticks every 2 s.
TICK = 2 * 10**9  # ns


def find_images(split: Path, classes: list[str]) -> TreeIndex:
    """The index of a split folder: the one kept from before if it still holds, else a new one, kept if that can be.

    Args:
        classes: names of the class folders in ``split``, in label order.

    Raises:
        DataError: a folder cannot be read.
    """
    file = cache_file(split)
    kept = _read(file, split) if file else None
    if kept is not None and kept.classes == classes and unchanged(kept, split):
        return kept
    start = time.time_ns()
    index = scan(split, classes)
    if file and index.stamps.max() < start - TICK:
        _write(file, split, index)
    return index


def cache_file(split: Path) -> Path | None:
    """Where the index of this folder is kept; None where there is no cache folder."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    try:  # a relative one is to be ignored, says the standard
        home = Path(given) if os.path.isabs(given) else Path.home() / ".cache"
    except RuntimeError:  # a user without a home
        return None
    key = hashlib.sha256(os.fsencode(split.resolve())).hexdigest()[:32]
    return home / "noah_lightning" / "index" / f"{key}.npz"


def _about(split: Path) -> dict[str, object]:
    """What an index must say of itself to be ours."""
    return {"version": VERSION, "folder": str(split.resolve()), "extensions": list(IMG_EXTENSIONS)}


def _read(file: Path, split: Path) -> TreeIndex | None:
    """None where there is no index that we can read."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            about = json.loads(arrays["about"].tobytes())
            classes = about.pop("classes")
            if about != _about(split):
                return None
            index = TreeIndex(
                classes,
                Names(arrays["folders"], arrays["folder_ends"]),
                arrays["stamps"],
                Names(arrays["files"], arrays["file_ends"]),
                arrays["folder_of"],
                arrays["labels"],
            )
        return index if _is_consistent(index) else None
    except Exception:  # missing, cut short, of another make: whatever it is, the folder itself can be asked
        return None


def _is_consistent(index: TreeIndex) -> bool:
    """Whether every name, folder and label that it speaks of is in it."""
    folders, files, classes = len(index.folders), len(index.files), len(index.classes)
    for names in (index.folders, index.files):
        ends = names.ends
        if names.text.dtype != np.uint8 or (np.diff(ends, prepend=0, append=len(names.text)) < 0).any():
            return False
    if index.stamps.shape != (folders, 2) or not index.folder_of.shape == index.labels.shape == (files,):
        return False
    inside = (index.folder_of >= 0) & (index.folder_of < folders) & (index.labels >= 0) & (index.labels < classes)
    return bool(inside.all()) and all(array.dtype.kind == "i" for array in (index.folder_of, index.labels))


def _write(file: Path, split: Path, index: TreeIndex) -> None:
    """At once or not at all: other processes may be reading it or writing it too."""
    about = json.dumps({**_about(split), "classes": index.classes}).encode()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=file.parent, suffix=".part")
    except OSError:  # no right to write there: we do without
        return
    try:
        with os.fdopen(handle, "wb") as stream:
            np.savez(
                stream,
                about=np.frombuffer(about, np.uint8),
                folders=index.folders.text,
                folder_ends=index.folders.ends,
                stamps=index.stamps,
                files=index.files.text,
                file_ends=index.files.ends,
                folder_of=index.folder_of,
                labels=index.labels,
            )
        os.replace(part, file)
    except OSError:  # no room
        os.unlink(part)
