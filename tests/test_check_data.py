"""noah check-data: every planted problem is found, none in a clean tree; all cores; no process survives."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from timm.data import ImageNetInfo

from conftest import Answer, call_noah
from noah_lightning.data.image import Picture
from noah_lightning.errors import DataError
from noah_lightning.loggers import progress
from noah_lightning.tools import check_data as check_file
from noah_lightning.tools import check_images
from noah_lightning.tools.check_data import (
    KINDS,
    Counts,
    Found,
    compare_with_imagenet,
    escaped,
    is_imagenet,
    list_trees,
)
from noah_lightning.tools.check_images import look_at, look_at_all

Noah = Callable[..., Answer]
WNIDS = ImageNetInfo().label_names()


def noise(seed: int, width: int = 24, height: int = 20) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


def make_clean(root: Path) -> Path:
    seed = 0
    for split in ("train", "val"):
        for name in ("ant", "bee", "cat"):
            (root / split / name).mkdir(parents=True)
            for i in range(4):
                noise(seed).save(root / split / name / f"{i}.jpg")
                seed += 1
    return root


def plant(root: Path) -> dict[str, list[str]]:
    """Spoils a clean tree; returns what is to be found, by kind."""
    train, val = root / "train", root / "val"
    (train / "only").mkdir()
    noise(100).save(train / "only" / "0.jpg")
    (val / "Cat ").mkdir()
    noise(101).save(val / "Cat " / "0.jpg")
    for split in (train, val):
        (split / "empty").mkdir()
    shutil.copytree(val / "bee", val / "wasp")
    noise(102).save(val / "loose.jpg")
    (train / "part.tar").touch()
    (train / "README").touch()
    (train / "moth").symlink_to(root / "nowhere")
    ant = train / "ant"
    (ant / "notes.txt").touch()
    (ant / "._0.jpg").write_bytes(b"\0\5\x16\7Mac OS X")
    (ant / "cut.jpg").write_bytes((ant / "0.jpg").read_bytes()[:-300])
    (ant / "zero.jpg").touch()
    (ant / "gone.jpg").symlink_to(root / "nowhere.jpg")
    os.mkfifo(ant / "pipe.jpg")
    noise(103, 3, 40).save(ant / "tiny.png")
    Image.new("1", (14_000, 14_000)).save(ant / "huge.png")
    Image.fromarray(np.full((9, 9), 40_000, np.uint16)).save(ant / "deep.png")
    shutil.copy(train / "bee" / "0.jpg", val / "bee" / "leak.jpg")
    shutil.copy(train / "bee" / "1.jpg", train / "cat" / "conflict.jpg")
    shutil.rmtree(val / "wasp")
    shutil.copytree(val / "bee", val / "wasp")
    return {
        "stray-image": ["train/part.tar", "val/loose.jpg"],
        "only-in-train": ["only"],
        "only-in-val": ["'Cat '", "wasp"],
        "empty-class": ["train/empty", "val/empty"],
        "unreadable": [
            "train/ant/gone.jpg (No such file or directory)",
            "train/ant/pipe.jpg (not a regular file)",
            "train/moth",
        ],
        "empty-file": ["train/ant/zero.jpg"],
        "undecodable": ["train/ant/._0.jpg (not an image)", "train/ant/cut.jpg (image file is truncated"],
        "huge": ["train/ant/huge.png (Image size (196000000 pixels)"],
        "tiny": ["train/ant/tiny.png (3 × 40)"],
        "clipped": ["train/ant/deep.png (I;16)"],
        "leak": ["train/bee/0.jpg = val/bee/leak.jpg = val/wasp/leak.jpg"],
        "label-conflict": [
            "train/bee/1.jpg = train/cat/conflict.jpg",
            *(f"val/bee/{name}.jpg = val/wasp/{name}.jpg" for name in ("0", "1", "2", "3", "leak")),
        ],
        "ignored": ["train/README", "train/ant/notes.txt"],
    }


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[str]]]:
    root = make_clean(tmp_path_factory.mktemp("planted"))
    return root, plant(root)


def test_a_clean_tree(tmp_path: Path) -> None:
    answer = call_noah("check-data", str(make_clean(tmp_path)))
    assert (answer.status, answer.err) == (0, "")
    assert answer.out.splitlines()[-1] == "no problems in 24 images"
    assert "problem:" not in answer.out
    assert "note:" not in answer.out
    assert "train         3       12             4        4      4" in answer.out


def test_every_planted_problem_is_found(planted: tuple[Path, dict[str, list[str]]]) -> None:
    root, expected = planted
    answer = call_noah("check-data", str(root), "--json")
    assert (answer.status, answer.err) == (1, "")
    report = json.loads(answer.out)
    found = {finding["kind"]: finding for finding in report["findings"]}
    assert set(found) == set(expected)
    for kind, items in expected.items():
        assert found[kind]["count"] == len(found[kind]["items"])
        assert [item[: len(start)] for item, start in zip(found[kind]["items"], items, strict=True)] == items
        assert found[kind]["severity"] == KINDS[kind][0]
    problems = [finding["count"] for finding in report["findings"] if finding["severity"] == "problem"]
    assert report["verdict"] == f"{sum(problems)} problems of 12 kinds in 40 images, 2 notes"
    assert len(problems) == 12
    assert not report["clean"]


def test_text_names_the_first_and_ends_with_the_verdict(planted: tuple[Path, dict[str, list[str]]]) -> None:
    answer = call_noah("check-data", str(planted[0]))
    assert answer.status == 1
    lines = answer.out.splitlines()
    at = lines.index("problem: same image in several classes of a split (6)")
    assert lines[at + 1 : at + 5] == [
        "    train/bee/1.jpg = train/cat/conflict.jpg",
        "    val/bee/0.jpg = val/wasp/0.jpg",
        "    val/bee/1.jpg = val/wasp/1.jpg",
        "    … and 3 more; see --json",
    ]
    assert lines[-1].endswith("problems of 12 kinds in 40 images, 2 notes")


def test_what_ends_a_training_is_a_problem(planted: tuple[Path, dict[str, list[str]]]) -> None:
    """And nothing else of a file does."""
    root, expected = planted
    ends_training = ("undecodable", "empty-file", "huge", "unreadable")
    broken = {item.split(" ")[0] for kind in ends_training for item in expected[kind]}
    for split, tree in list_trees(root, defaultdict(list)).items():
        for path in (f"{split}/{tree.path(image)}" for image in range(len(tree))):
            if path in broken:
                with pytest.raises(DataError):
                    Picture.read(root / path).pixels()
            else:
                Picture.read(root / path).pixels()


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_clean(tmp_path)
    scandir = os.scandir

    def refuse(path: Path | str) -> object:
        if str(path).endswith("bee"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)  # root may read all folders
    found: Found = defaultdict(list)
    trees = list_trees(tmp_path, found)
    assert [np.bincount(tree.labels).tolist() for tree in trees.values()] == [[4, 0, 4]] * 2
    refused = [f"{split}/bee (Permission denied)" for split in ("train", "val")]
    assert found == {"unreadable-folder": refused}


def test_missing_split_is_a_problem(tmp_path: Path) -> None:
    shutil.rmtree(make_clean(tmp_path) / "val")
    answer = call_noah("check-data", str(tmp_path))
    assert answer.status == 1
    assert "problem: split folder missing (1)\n    val/\n1 problem of 1 kind in 12 images\n" in answer.out


@pytest.mark.parametrize(
    ("name", "message"),
    [("nowhere", "does not exist"), ("file", "is not a folder"), ("", "has neither train/ nor val/")],
)
def test_mistakes_end_in_one_line(noah: Noah, tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "file").touch()
    answer = noah("check-data", str(tmp_path / name))
    assert (answer.status, answer.out) == (2, "")
    assert message in answer.err
    assert answer.err.count("\n") == 1


class Acting(str):
    """A path that evaluates an expression in the process that receives it."""

    action: str

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return eval, (f"({self.action}, {str(self)!r})[1]",)


def acting(path: str, action: str) -> str:
    path = Acting(path)
    path.action = action
    return path


def test_work_is_spread_over_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_images, "cores", lambda: 2)
    monkeypatch.setattr(check_images, "CHUNK", 1)
    seen = tmp_path / "seen"
    seen.mkdir()
    note = f"__import__('pathlib').Path({str(seen)!r}, str(__import__('os').getpid())).touch()"
    noise(0, 900, 700).save(tmp_path / "0.png")
    paths = [acting("0.png", note) for _ in range(40)]
    assert [path for path, _ in look_at_all(str(tmp_path), paths)] == paths
    assert len(os.listdir(seen)) == 2
    assert str(os.getpid()) not in os.listdir(seen)


@pytest.mark.parametrize("crashes", [1, 3])
def test_a_file_that_kills_its_process_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crashes: int
) -> None:
    make_clean(tmp_path)
    deadly = [f"train/bee/{number}.jpg" for number in range(crashes)]
    looks = check_file.look_at_all
    monkeypatch.setattr(
        check_file,
        "look_at_all",
        lambda root, paths: looks(
            root, (acting(path, "__import__('os')._exit(1)") if path in deadly else path for path in paths)
        ),
    )
    monkeypatch.setattr(check_images, "CHUNK", 4)
    (tmp_path / "val" / "cat" / "3.jpg").write_bytes(b"")
    report = json.loads(call_noah("check-data", str(tmp_path), "--json").out)
    found = [(finding["kind"], finding["items"]) for finding in report["findings"]]
    assert found == [("empty-file", ["val/cat/3.jpg"]), ("crash", deadly)], "all others are looked at, each once"


def test_a_broken_pool_waits_for_no_process() -> None:
    """Python's own would wait for one that it starts while another one dies."""
    start = time.monotonic()
    with pytest.raises(BrokenProcessPool), check_images._pool(2) as pool:  # noqa: PT012
        late = get_context("forkserver").Process(target=time.sleep, args=(60,))
        late.start()
        pool.submit(os.getpid).result()
        pool._processes[late.pid] = late  # type: ignore[index]
        raise BrokenProcessPool
    assert not late.is_alive()
    assert time.monotonic() - start < 40


class TestOneFile:
    def test_no_right_to_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        noise(0).save(tmp_path / "0.jpg")

        def refuse(self: Path) -> bytes:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "read_bytes", refuse)
        assert look_at(tmp_path / "0.jpg").remarks == [("unreadable", "Permission denied")]

    def test_a_damaged_jpeg_that_pillow_decodes(self, tmp_path: Path) -> None:
        noise(0, 200, 200).save(tmp_path / "0.jpg")
        data = bytearray((tmp_path / "0.jpg").read_bytes())
        data[len(data) // 2 : len(data) // 2 + 40] = bytes(range(40, 80))
        (tmp_path / "0.jpg").write_bytes(data)
        Picture.read(tmp_path / "0.jpg").pixels()
        assert look_at(tmp_path / "0.jpg").remarks == [("damaged", "")]

    @pytest.mark.parametrize("name", ["a.JPEG", "a.png", "a.bmp", "a.webp", "a.tif", "l.jpg", "cmyk.jpg", "p.png"])
    def test_usual_ones_need_no_remark(self, tmp_path: Path, name: str) -> None:
        modes = {"l.jpg": "L", "cmyk.jpg": "CMYK", "p.png": "P"}
        noise(0).convert(modes.get(name, "RGB")).save(tmp_path / name)
        look = look_at(tmp_path / name)
        assert look.remarks == []
        assert look.digest != 0


def published() -> Counts:
    """ImageNet's classes, with as many images in all as it has."""
    train = dict.fromkeys(WNIDS, 1281)
    for wnid in WNIDS[:16]:
        train[wnid] += 10
    train[WNIDS[16]] += 7
    return {"train": train, "val": dict.fromkeys(WNIDS, 50)}


class TestImageNet:
    def found(self, counts: Counts) -> dict[str, list[str]]:
        found: Found = defaultdict(list)
        compare_with_imagenet(counts, found)
        return {kind: sorted(items) for kind, items in found.items()}

    def test_as_published(self) -> None:
        assert is_imagenet(published())
        assert self.found(published()) == {}

    def test_classes_and_counts_that_differ(self) -> None:
        counts = published()
        del counts["val"][WNIDS[7]]
        counts["train"]["n99999999"] = 1000
        counts["train"][WNIDS[0]] -= 600
        assert is_imagenet(counts)
        assert self.found(counts) == {
            "imagenet-missing": [f"val/{WNIDS[7]}"],
            "imagenet-extra": ["train/n99999999"],
            "imagenet-count": [f"train/{WNIDS[0]} (691, published 732 to 1300)"],
            "imagenet-total": ["train/ (1,281,567, published 1,281,167)", "val/ (49,950, published 50,000)"],
        }

    def test_a_part_of_it_is_a_data_set_of_its_own(self) -> None:
        assert not is_imagenet({"train": dict.fromkeys(WNIDS[:100], 1300)})

    def test_recognised_on_disk(self, tmp_path: Path) -> None:
        for split in ("train", "val"):
            for wnid in WNIDS[:999]:
                (tmp_path / split / wnid).mkdir(parents=True)
        report = json.loads(call_noah("check-data", str(tmp_path), "--json").out)
        items = {finding["kind"]: finding["items"] for finding in report["findings"]}
        assert report["imagenet"]
        assert items["imagenet-missing"] == [f"train/{WNIDS[999]}", f"val/{WNIDS[999]}"]
        assert len(items["empty-class"]) == 1998

    def test_its_own_copies_are_not_reported(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """It was collected from the web and has a few."""
        make_clean(tmp_path)
        shutil.copy(tmp_path / "train" / "bee" / "0.jpg", tmp_path / "val" / "cat" / "0.jpg")
        assert not check_file.check_data(tmp_path).clean
        monkeypatch.setattr(check_file, "is_imagenet", lambda counts: True)
        found = check_file.check_data(tmp_path).findings
        assert {finding.kind.partition("-")[0] for finding in found} == {"imagenet"}


def test_names_are_harmless_on_a_terminal() -> None:
    assert escaped("train/\x1b[2J/\udcff.jpg") == r"train/\x1b[2J/\udcff.jpg"
    assert escaped("café ") == "'café '"


def test_elsewhere_than_on_a_terminal_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = iter([0.0, 5.0, 11.0, 20.0, 22.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(seconds))
    with progress.progress("checking", 1000) as advance:
        for _ in range(4):
            advance()
    lines = [f"checking: {done} of 1,000 images  0 images/s  1:31:{s} left" for done, s in ((2, 29), (4, 18))]
    assert capsys.readouterr().err.splitlines() == lines


def start_long_check(root: Path) -> "subprocess.Popen[str]":
    """A check in a session of its own that is under way."""
    for split in ("train", "val"):
        (root / split / "a").mkdir(parents=True)
        noise(0, 1200, 900).save(root / split / "a" / "0.png")
        for i in range(1, 1500):
            os.link(root / split / "a" / "0.png", root / split / "a" / f"{i}.png")
    code = (
        "import sys; from noah_lightning.loggers import progress; progress.EVERY = 0.1; "
        "from noah_lightning.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    check = subprocess.Popen(
        [sys.executable, "-c", code, "check-data", str(root)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert check.stderr is not None
    assert "images" in check.stderr.readline()
    return check


def running(session: int) -> list[str]:
    """Processes of a session that are not dead already."""
    listed = subprocess.run(["ps", "-s", str(session), "-o", "stat="], capture_output=True, text=True).stdout
    return [state for state in listed.split() if not state.startswith("Z")]


@pytest.mark.slow
@pytest.mark.parametrize(("stop", "status"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_stopped_it_leaves_no_process(tmp_path: Path, stop: signal.Signals, status: int) -> None:
    check = start_long_check(tmp_path)
    stopped = time.monotonic()
    if stop == signal.SIGINT:
        os.killpg(check.pid, stop)  # as a terminal does
    else:
        check.kill()
    out, err = check.communicate(timeout=60)
    assert time.monotonic() - stopped < 20, "nothing that was handed out is finished first"
    assert check.returncode == status
    assert out == ""
    if stop == signal.SIGINT:
        assert err.splitlines()[-1].startswith("noah: interrupted after ")
        assert "Traceback" not in err
    until = time.monotonic() + 10
    while running(check.pid) and time.monotonic() < until:
        time.sleep(0.1)
    assert not running(check.pid)
