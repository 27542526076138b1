"""noah pack: what the shards hold, what an interrupted attempt leaves, and its mistakes."""

import contextlib
import io
import json
import os
import signal
import sys
import tarfile
import time
import traceback
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image
from webdataset import WebDataset

from conftest import Answer
from noah_lightning import cli
from noah_lightning.data.pack_format import read_index
from noah_lightning.errors import DataError
from noah_lightning.loggers import progress
from noah_lightning.tools import pack as pack_file
from noah_lightning.tools.pack import LOCK, pack

Noah = Callable[..., Answer]
SHARD = 6000  # bytes: a few images of the tree


def make_photos(root: Path) -> Path:
    """root/{train,val}/{ant,bee,cat}/*: noise, each image another one, some no JPEG."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 9), ("val", 4)):
        for name in ("ant", "bee", "cat"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                image = Image.fromarray(rng.integers(0, 256, (24 + i, 30, 3), dtype=np.uint8))
                image.save(folder / f"{i}.v1.{'PNG' if i == 3 else 'jpg'}")
    return root


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_photos(tmp_path / "photos")


@pytest.fixture(scope="module")
def shared_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same tree, only read."""
    return make_photos(tmp_path_factory.mktemp("shared") / "photos")


@pytest.fixture(scope="module")
def packed(shared_photos: Path) -> Path:
    """Its pack, only read."""
    out = shared_photos.with_name("packed")
    pack(shared_photos, out, SHARD)
    return out


def members(out: Path, split: str) -> list[tuple[str, bytes]]:
    """All that the shards of a split hold, as any program that reads tar archives sees it."""
    found = []
    for shard in sorted(out.glob(f"{split}-*.tar")):
        with tarfile.open(shard) as archive:
            found += [(member.name, archive.extractfile(member).read()) for member in archive]  # type: ignore[union-attr]
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("split", ["train", "val"])
def test_shards_hold_the_files_and_their_labels(shared_photos: Path, packed: Path, split: str) -> None:
    """As WebDataset's convention has it: members of one sample share a key and stand together."""
    found = members(packed, split)
    assert len(list(packed.glob(f"{split}-*.tar"))) > 2
    images, labels = found[::2], found[1::2]
    assert [name for name, _ in labels] == [f"{number:09}.cls" for number in range(len(images))]
    assert [name[:9] for name, _ in images] == [f"{number:09}" for number in range(len(images))]
    packed = [(int(label), data) for (_, data), (_, label) in zip(images, labels, strict=True)]
    tree = [
        (label, file.read_bytes())
        for label, name in enumerate(("ant", "bee", "cat"))
        for file in sorted((shared_photos / split / name).iterdir())
    ]
    assert sorted(packed) == sorted(tree)
    assert (packed == tree) == (split == "val"), "only the training images are shuffled"
    assert {name[9:] for name, _ in images} == {".jpg", ".png"}


def test_the_index_says_where_they_lie(packed: Path) -> None:
    index = read_index(packed, "train")
    found = members(packed, "train")
    start = 0
    for shard, end in enumerate(index.ends.tolist()):
        data = (packed / f"train-{shard:06}.tar").read_bytes()
        for image in range(start, end):
            offset, size = int(index.offsets[image]), int(index.sizes[image])
            assert data[offset : offset + size] == found[2 * image][1]
            assert int(index.labels[image]) == int(found[2 * image + 1][1])
        start = end
    assert start == len(index) == 27


def test_classes_are_mixed_over_the_shards(shared_photos: Path, tmp_path: Path) -> None:
    pack(shared_photos, tmp_path / "out", 3 * SHARD)
    index = read_index(tmp_path / "out", "train")
    for some in np.split(index.labels, index.ends[:-1]):
        assert len(some) < 5 or len(set(some.tolist())) > 1


def test_shards_are_as_large_as_asked(shared_photos: Path, packed: Path) -> None:
    *full, last = read_index(packed, "train").shard_bytes.tolist()
    largest = max(file.stat().st_size for file in shared_photos.rglob("*.*g"))
    assert all(SHARD / 2 < size < SHARD + largest + 3 * 512 + tarfile.RECORDSIZE for size in full)
    assert last > 0


def test_the_same_tree_makes_the_same_pack(photos: Path, packed: Path, tmp_path: Path) -> None:
    pack(photos, tmp_path / "out", SHARD)
    one, two = contents(packed), contents(tmp_path / "out")
    assert one.keys() == two.keys()
    assert all(one[name] == two[name] for name in one if name.endswith((".tar", ".json")))


def test_the_command_reports_the_result(photos: Path, noah: Noah) -> None:
    answer = noah("pack", str(photos), "out", "--shard-size", "1")
    assert (answer.status, answer.err) == (0, "")
    assert answer.out == "out  train 27 images in 1 shard  val 12 images in 1 shard  3 classes  133.1 kB\n"
    facts = json.loads(Path("out/pack.json").read_text())
    assert facts["classes"] == ["ant", "bee", "cat"]
    assert sorted(os.listdir("out")) == ["pack.json", "train-000000.tar", "train.npz", "val-000000.tar", "val.npz"]


def test_lines_report_the_progress(photos: Path, noah: Noah, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.0)
    lines = noah("pack", str(photos), "out").err.splitlines()
    assert len(lines) == 39
    assert lines[26].startswith("packing: 27 of 39 images  ")
    assert lines[38].endswith(" images/s  0:00 left")


def test_a_terminal_has_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress.progress("packing", 39) as advance:
        for _ in range(39):
            advance()
    assert "39/39" in sys.stderr.getvalue()  # type: ignore[attr-defined]


def test_what_exists_is_never_touched(photos: Path, noah: Noah) -> None:
    """Not even a link to nowhere, nor a folder that only looks like an unfinished pack."""
    noah("pack", str(photos), "out")
    Path("empty").mkdir()
    Path("link").symlink_to("nowhere")
    before = contents(Path("out"))
    for name in ("out", "empty", "link"):
        answer = noah("pack", str(photos), name)
        expected = f"noah: {name} already exists and is not overwritten: choose a new folder\n"
        assert (answer.status, answer.out, answer.err) == (2, "", expected)
    assert contents(Path("out")) == before
    Path("new.unfinished").mkdir()
    Path("new.unfinished/thesis.txt").touch()
    answer = noah("pack", str(photos), "new")
    expected = "noah: new.unfinished was not written by noah pack: move it, or choose another folder\n"
    assert (answer.status, answer.err) == (2, expected)
    assert os.listdir("new.unfinished") == ["thesis.txt"]


def test_two_at_a_time_do_not_mix(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    part = tmp_path / "out.unfinished"
    part.mkdir()
    with FileLock(part / LOCK), pytest.raises(DataError, match=r"^another process is packing into .*/out: wait"):
        pack(photos, out, SHARD)
    assert os.listdir(part) == [LOCK]
    assert not out.exists()


# --- interrupted


def pack_slowly(photos: Path, out: Path) -> int:
    """``noah pack`` in a process of its own, forked from this one to spare the imports; returns its number."""
    child = os.fork()
    if child == 0:
        add = pack_file._add
        pack_file._add = lambda *member: (time.sleep(0.02), add(*member))
        status = 1
        with out.with_suffix(".err").open("w") as told, contextlib.redirect_stderr(told):
            write = pack_file.pack
            pack_file.pack = lambda root, out, size: write(root, out, SHARD)
            try:
                status = cli.main(["pack", str(photos), str(out)])
            except BaseException:
                traceback.print_exc()
        os._exit(status)
    return child


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM], ids=lambda how: how.name)
def test_an_interrupted_pack_is_not_taken_for_finished(photos: Path, noah: Noah, how: signal.Signals) -> None:
    out = Path("out")
    child = pack_slowly(photos, out)
    part = Path("out.unfinished")
    while not (part / "train-000001.tar").exists():
        time.sleep(0.01)
    os.kill(child, how)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == (-how if how == signal.SIGKILL else 128 + how), Path("out.err").read_text()
    trained = noah("train", "data=packed", "data.root=out")
    assert trained.status == 2
    if how == signal.SIGKILL:
        assert trained.err == ("noah: data.root=out is an incomplete pack: run its noah pack command again\n")
        (part / "val-000099.tar").touch()  # it might have been another tree
    else:
        assert Path("out.err").read_text() == ""
        assert not part.exists()
    assert not out.exists()
    again = noah("pack", str(photos), "out")
    assert again.status == 0
    assert ("out: packing was interrupted; starting over\n" in again.out) == (how == signal.SIGKILL)
    assert not part.exists()
    noah("pack", str(photos), "new")
    one, two = contents(out), contents(Path("new"))
    assert one.keys() == two.keys()
    assert all(one[name] == two[name] for name in one if name.endswith((".tar", ".json")))


def test_killed_just_before_the_end(photos: Path, tmp_path: Path) -> None:
    """All is written but the folder does not have its name yet."""
    out = tmp_path / "out"
    child = os.fork()
    if child == 0:
        Path.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign,assignment]
        pack(photos, out, SHARD)
    os.waitpid(child, 0)
    assert (tmp_path / "out.unfinished" / "pack.json").exists()
    with pytest.raises(DataError, match="incomplete pack"):
        read_index(out, "train")
    pack(photos, out, SHARD)
    assert len(read_index(out, "train")) == 27
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "photos"]


def test_a_full_disk_is_one_line(photos: Path, noah: Noah, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pack_file, "_add", full)
    answer = noah("pack", str(photos), "out")
    assert (answer.status, answer.err) == (2, "noah: out cannot be written: No space left on device\n")
    assert not list(Path().glob("out*"))


# --- mistakes in the tree


def test_mistakes_are_those_of_a_folder_tree(photos: Path, noah: Noah) -> None:
    answer = noah("pack", "nowhere", "out")
    assert (answer.status, answer.err.count("\n")) == (2, 1)
    assert answer.err.startswith("noah: data.root=nowhere does not exist")
    for split in ("train", "val"):
        (photos / split / "dog").mkdir()
    answer = noah("pack", str(photos), "out")
    assert answer.status == 2
    assert answer.err.startswith(
        f"noah: {photos}/train has classes without images, fill or remove them: dog; images are ."
    )
    assert not Path("out").exists()


@pytest.mark.parametrize("how", ["text", "truncated", "empty", "gone"])
def test_an_unreadable_image_is_named(photos: Path, noah: Noah, how: str) -> None:
    file = photos / "val" / "bee" / "1.v1.jpg"
    contents = {"text": b"<html>", "truncated": file.read_bytes()[:300], "empty": b""}
    if how == "gone":
        file.unlink()
        file.symlink_to("nowhere.jpg")
    else:
        file.write_bytes(contents[how])
    answer = noah("pack", str(photos), "out")
    assert (answer.status, answer.err.count("\n")) == (2, 1)
    assert answer.err.startswith(f"noah: {file} cannot be read as an image, replace or remove it (")
    assert not Path("out").exists()
    file.unlink()
    assert noah("pack", str(photos), "out").status == 0


# --- other programs


@pytest.mark.parametrize("split", ["train", "val"])
def test_webdataset_reads_the_shards(packed: Path, split: str) -> None:
    shards = sorted(map(str, packed.glob(f"{split}-*.tar")))
    samples = WebDataset(shards, shardshuffle=False).to_tuple("jpg;png", "cls")
    index = read_index(packed, split)
    found = [(zlib.crc32(image), int(label)) for image, label in samples]
    assert found == list(zip(index.checksums.tolist(), index.labels.tolist(), strict=True))
