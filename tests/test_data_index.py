"""The list of a split folder's images, and when it is listed again."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torchvision.datasets import ImageFolder

from noah_lightning.data import index as index_cache
from noah_lightning.data.index import TreeIndex, cache_file, find_images, scan
from noah_lightning.data.tree import class_folders
from noah_lightning.errors import DataError

HOUR = 3600 * 10**9  # ns


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def split(tmp_path: Path) -> Path:
    """Two classes, one with folders in it."""
    split = tmp_path / "data" / "train"
    for name in ("bee/0.jpg", "bee/1.jpg", "ant/0.jpg", "ant/old/deep/7.jpg", "ant/old/8.jpg"):
        touch(split / name)
    return split


def touch(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour has gone by since the folders were made."""
    now = time.time_ns
    monkeypatch.setattr(index_cache.time, "time_ns", lambda: now() + HOUR)


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders listed from now on, in order."""
    listed: list[str] = []
    walk = index_cache.walk

    def noted(*arguments: Any) -> Iterator[tuple[str, list[str]]]:
        for folder, files in walk(*arguments):
            listed.append(Path(folder).name)
            yield folder, files

    monkeypatch.setattr(index_cache, "walk", noted)
    return listed


def find(split: Path) -> TreeIndex:
    return find_images(split, class_folders(split.parent, split.name))


def images(index: TreeIndex) -> list[tuple[str, int]]:
    return [(index.path(i), int(index.labels[i])) for i in range(len(index))]


SMALL = [("ant/0.jpg", 0), ("ant/old/8.jpg", 0), ("ant/old/deep/7.jpg", 0), ("bee/0.jpg", 1), ("bee/1.jpg", 1)]


class TestScan:
    def test_the_files_and_the_order_are_torchvisions(self, tmp_path: Path) -> None:
        split = tmp_path / "train"
        for name in (
            *(f"cat/{i}.jpg" for i in (10, 9, 1)),
            *("cat/a/1.png", "cat/a/b/2.webp", "cat/a-x/3.bmp", "cat/B/4.TIFF", "cat/.5.jpg", "cat/.hidden/6.jpg"),
            *("cat/notes.txt", "cat/jpg", "cat/7.jpg.part", "cat/8.JpEg", "cat/ä ö.jpeg", "cat/new\nline.pgm"),
            *("Dog/1.jpg", "Dog/x.jpg/1.ppm", "eel/1.tif"),
        ):
            touch(split / name)
        (split / "cat" / os.fsdecode(b"\xff.jpg")).touch()  # no UTF-8
        touch(tmp_path / "elsewhere" / "1.jpg")
        (split / "eel" / "link").symlink_to(tmp_path / "elsewhere")
        (split / "fox").symlink_to(tmp_path / "elsewhere")
        (split / "eel" / "dangling.jpg").symlink_to(tmp_path / "nowhere")
        theirs = ImageFolder(split)
        ours = scan(split, theirs.classes)
        assert ours.classes == theirs.classes == ["Dog", "cat", "eel", "fox"]
        assert [(str(split / path), label) for path, label in images(ours)] == theirs.samples
        assert len(ours) == 19

    def test_no_python_object_for_each_image(self, split: Path) -> None:
        index = scan(split, ["ant", "bee"])
        for array in (index.images, index.labels):
            assert isinstance(array, np.ndarray)
            assert array.dtype != object

    def test_a_folder_that_cannot_be_read_is_reported(self, split: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        scandir = os.scandir

        def refuse(path: str):  # type: ignore[no-untyped-def]
            if Path(path).name == "deep":
                raise PermissionError(13, "Permission denied", path)
            return scandir(path)

        monkeypatch.setattr(os, "scandir", refuse)
        with pytest.raises(DataError, match=r"/train/ant/old/deep cannot be read: Permission denied$"):
            scan(split, ["ant", "bee"])


@pytest.mark.usefixtures("later")
class TestKept:
    def test_the_second_start_lists_nothing(self, split: Path, scans: list[str]) -> None:
        first = find(split)
        assert sorted(scans) == ["ant", "bee", "deep", "old"]
        scans.clear()
        second = find(split)
        assert scans == []
        assert images(first) == images(second) == SMALL
        assert second.classes == ["ant", "bee"]

    def test_each_split_has_its_own(self, split: Path) -> None:
        touch(split.parent / "val" / "ant" / "only.jpg")
        assert images(find(split)) == SMALL
        assert images(find(split.parent / "val")) == [("ant/only.jpg", 0)]
        assert images(find(split)) == SMALL

    def test_found_by_another_way_to_the_same_folder(
        self, split: Path, scans: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        find(split)
        scans.clear()
        (tmp_path / "link").symlink_to(split.parent)
        assert images(find(tmp_path / "link" / "train")) == SMALL
        monkeypatch.chdir(tmp_path)
        assert images(find(Path("data/train"))) == SMALL
        assert scans == []

    def test_odd_names_come_back(self, split: Path, scans: list[str]) -> None:
        touch(split / os.fsdecode(b"c\xff") / os.fsdecode(b"\xfe \n.jpg"))
        first = find(split)
        scans.clear()
        assert images(find(split)) == images(first)
        assert scans == []

    @pytest.mark.parametrize(
        "change",
        [
            lambda split: touch(split / "bee/2.jpg"),
            lambda split: touch(split / "ant/old/deep/8.jpg"),
            lambda split: (split / "bee/1.jpg").unlink(),
            lambda split: (split / "bee/1.jpg").rename(split / "bee/3.jpg"),
            lambda split: (split / "ant/old/8.jpg").rename(split / "ant/old/deep/8.jpg"),
            lambda split: touch(split / "ant/new/1.jpg"),
            lambda split: shutil.rmtree(split / "ant/old/deep"),
            lambda split: (split / "ant/old").rename(split / "ant/older"),
            lambda split: touch(split / "cow/1.jpg"),
            lambda split: shutil.rmtree(split / "ant"),
            lambda split: (split / "ant").rename(split / "zebra"),
            lambda split: (split / "ant").rename(split / ".ant"),
        ],
    )
    def test_a_change_anywhere_is_noticed(self, split: Path, change: Callable[[Path], object]) -> None:
        find(split)
        time.sleep(0.02)  # more than a tick of the file system's clock
        change(split)
        assert images(find(split)) == images(scan(split, class_folders(split.parent, "train"))) != SMALL

    def test_a_change_is_noticed_when_its_time_is_set_back(self, split: Path) -> None:
        """As tar and rsync do at the end."""
        find(split)
        before = (split / "bee").stat()
        time.sleep(0.02)
        touch(split / "bee" / "2.jpg")
        os.utime(split / "bee", ns=(before.st_atime_ns, before.st_mtime_ns))
        assert ("bee/2.jpg", 1) in images(find(split))

    def test_a_written_image_is_no_change(self, split: Path, scans: list[str]) -> None:
        find(split)
        scans.clear()
        (split / "bee" / "0.jpg").write_bytes(b"other pixels")
        find(split)
        assert scans == []

    @pytest.mark.parametrize("how", ["empty", "text", "cut", "pickled", "version", "folder", "extensions"])
    def test_an_index_that_is_not_ours_is_replaced(
        self, split: Path, how: str, scans: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        find(split)
        file = cache_file(split)
        assert file is not None
        content = file.read_bytes()
        if how in ("empty", "text", "cut"):
            file.write_bytes({"empty": b"", "text": b"hello", "cut": content[: len(content) // 2]}[how])
        elif how == "pickled":
            with np.load(file) as arrays:
                np.savez(file, **{**arrays, "images": np.array([print], dtype=object)})
        elif how == "version":
            monkeypatch.setattr(index_cache, "VERSION", 0)
        elif how == "folder":
            other = split.parent / "copy"
            shutil.copytree(split, other)
            find(other)
            shutil.copy(cache_file(other), file)  # type: ignore[arg-type]
        else:
            monkeypatch.setattr(index_cache, "IMG_EXTENSIONS", (".jpg",))
        scans.clear()
        assert images(find(split)) == SMALL
        assert scans, "listed again"
        scans.clear()
        assert images(find(split)) == SMALL
        assert scans == [], "and kept"

    def test_nothing_else_is_left_there_or_in_the_data(self, split: Path, tmp_path: Path) -> None:
        before = sorted(split.parent.rglob("*"))
        find(split)
        assert sorted(split.parent.rglob("*")) == before
        assert [file.suffix for file in (tmp_path / "cache").rglob("*") if file.is_file()] == [".npz"]

    def test_a_cache_that_cannot_be_written(
        self, split: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "cache").touch()  # a file where the folder would be
        assert images(find(split)) == images(find(split)) == SMALL

    def test_a_disk_that_is_full(self, split: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def no_room(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(index_cache.np, "savez", no_room)
        assert images(find(split)) == SMALL
        assert not [file for file in (tmp_path / "cache").rglob("*") if file.is_file()]


class TestWhere:
    def test_the_users_cache_folder(self, split: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        file = cache_file(split)
        assert file is not None
        assert file.parent == tmp_path / "cache" / "noah_lightning" / "index"
        monkeypatch.setenv("HOME", str(tmp_path / "me"))
        for given in ("", "relative/folder"):
            monkeypatch.setenv("XDG_CACHE_HOME", given)
            assert cache_file(split) == tmp_path / "me" / ".cache" / "noah_lightning" / "index" / file.name

    def test_a_user_without_a_home(self, split: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def homeless() -> Path:
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(Path, "home", homeless)
        assert cache_file(split) is None
        assert images(find(split)) == SMALL


def test_a_tree_changed_just_now_is_not_kept(split: Path, scans: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """It might change again within the same tick of the clock, and look unchanged."""
    newest = max(max(index_cache.stamp(folder)) for folder in [split, *split.rglob("*/")])
    for age, kept in ((0, False), (10**9, False), (2 * 10**9, False), (2 * 10**9 + 1, True)):
        monkeypatch.setattr(index_cache.time, "time_ns", lambda age=age: newest + age)
        find(split)
        scans.clear()
        find(split)
        assert (not scans) == kept, age


@pytest.mark.slow
@pytest.mark.usefixtures("later")
def test_the_second_start_takes_under_a_tenth_of_the_first(tmp_path: Path) -> None:
    """100,000 files in 1000 classes, all in the page cache."""
    split = tmp_path / "train"
    for name in range(1000):
        (split / f"n{name:08}").mkdir(parents=True)
        for i in range(100):
            (split / f"n{name:08}" / f"n{name:08}_{i}.JPEG").touch()
    scan(split, class_folders(tmp_path, "train"))
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        assert len(find(split)) == 100_000
        seconds.append(time.perf_counter() - start)
    assert min(seconds[1:]) < seconds[0] / 10, seconds
