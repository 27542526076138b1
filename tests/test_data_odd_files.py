"""Trees with links in a circle, pipes, sockets, devices and odd names: training, pack and check-data."""

import json
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import ExifTags, Image

from conftest import Answer, call_noah
from noah_lightning.data.image import Picture
from noah_lightning.data.index import IMG_EXTENSIONS, find_images, scan
from noah_lightning.data.packed import PackedImages
from noah_lightning.errors import DataError
from noah_lightning.tools.pack import pack

Noah = Callable[..., Answer]
BROKEN = "line\nbreak"
LATIN = os.fsdecode(b"caf\xe9.jpg")


def add_pipe(path: Path) -> None:
    os.mkfifo(path)


def add_socket(path: Path) -> None:
    before = Path.cwd()
    os.chdir(path.parent)  # the name of a socket may have 100 characters
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(path.name)
    os.chdir(before)


def add_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


SPECIAL = [add_pipe, add_socket, add_device]


def train(noah: Noah, root: Path) -> Answer:
    return noah(
        "train",
        *("data=imagefolder", f"data.root={root}", "data.image_size=32", "recipe=digits", "recipe.epochs=1"),
        *("model=timm", "model.name=test_resnet", "head=gap", "recipe.batch_size=8", "data.num_workers=1"),
    )


# --- links in a circle


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("train/ant/loop", "train/ant"),
        ("train/ant/old/loop", "train/ant"),
        ("train/ant/loop", "train"),
        ("train/ant/loop", "."),
        ("train/ant/loop", ".."),
        ("train/loop", "train"),
    ],
)
def test_a_circle_is_refused_and_named(jpeg_tree: Path, link: str, target: str) -> None:
    path = jpeg_tree / link
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(jpeg_tree / target)
    train = jpeg_tree / "train"
    message = rf"^{re.escape(str(path))} is a link to a folder that contains it, so it never ends: remove it$"
    with pytest.raises(DataError, match=message):
        scan(train, sorted(os.listdir(train)))
    reported = []
    assert len(scan(train, sorted(os.listdir(train)), lambda *one: reported.append(one))) == 16, "it is not followed"
    assert reported == [("circle", str(path), "")]


def test_a_circle_of_two_links_is_refused(jpeg_tree: Path) -> None:
    train = jpeg_tree / "train"
    (train / "ant/next").symlink_to(train / "bee")
    (train / "bee/next").symlink_to(train / "ant")
    with pytest.raises(DataError, match="ant/next/next is a link to a folder that contains it"):
        find_images(train, ["ant", "bee"])


def test_a_circle_found_through_a_link_to_the_tree(jpeg_tree: Path, tmp_path: Path) -> None:
    """The real folder above it is not part of the path that was given."""
    (tmp_path / "short").symlink_to(jpeg_tree)
    (jpeg_tree / "train/ant/loop").symlink_to(jpeg_tree.parent)
    with pytest.raises(DataError, match="short/train/ant/loop is a link to a folder that contains it"):
        find_images(tmp_path / "short" / "train", ["ant", "bee"])


def test_two_links_to_one_folder_are_no_circle(jpeg_tree: Path, tmp_path: Path) -> None:
    more = tmp_path / "more"
    more.mkdir()
    Image.new("RGB", (32, 32)).save(more / "0.png")
    for name in ("ant/a", "ant/b", "bee/a"):
        (jpeg_tree / "train" / name).symlink_to(more)
    assert len(find_images(jpeg_tree / "train", ["ant", "bee"])) == 16 + 3


# --- pipes, sockets and devices


@pytest.mark.parametrize("add", SPECIAL)
def test_only_regular_files_are_listed(noah: Noah, jpeg_tree: Path, add: Callable[[Path], None]) -> None:
    add(jpeg_tree / "train/ant/odd.jpg")
    for answer in (train(noah, jpeg_tree), noah("pack", str(jpeg_tree), "out")):
        assert (answer.status, answer.err.count("\n")) == (2, 1)
        assert answer.err == f"noah: {jpeg_tree}/train/ant/odd.jpg is not a regular file: remove it\n"


@pytest.mark.parametrize("add", SPECIAL)
def test_a_file_that_is_replaced_later_is_not_opened(tmp_path: Path, add: Callable[[Path], None]) -> None:
    add(tmp_path / "odd.jpg")
    with pytest.raises(DataError, match=r"odd\.jpg cannot be read as an image, .* \(not a regular file\)$"):
        Picture.read(tmp_path / "odd.jpg")


# --- names and messages


@pytest.mark.parametrize("name", ["train/ant/line\nbreak.jpg", "train/bee\nhive/0.jpg", "val/ant/line\nbreak.jpg"])
def test_an_unreadable_image_is_named_in_full(noah: Noah, jpeg_tree: Path, name: str) -> None:
    path = jpeg_tree / name
    if "hive" in name:
        for split in ("train", "val"):
            (jpeg_tree / split / "bee").rename(jpeg_tree / split / "bee\nhive")
    path.write_text("not an image")
    answer = train(noah, jpeg_tree)
    shown = str(path).replace("\n", r"\n")
    expected = f"noah: {shown} cannot be read as an image, replace or remove it (not an image)\n"
    assert (answer.status, answer.err) == (2, expected)
    [log] = jpeg_tree.parent.glob("runs/**/train.log")
    assert expected.removeprefix("noah: ") in log.read_text()


def test_no_message_names_a_buffer(tmp_path: Path, jpeg_tree: Path) -> None:
    (tmp_path / "text.jpg").write_text("not an image")
    with pytest.raises(DataError, match=r"text\.jpg cannot be read .* \(not an image\)$"):
        Picture.read(tmp_path / "text.jpg")
    pack(jpeg_tree, tmp_path / "pack", 10**6)
    packed = PackedImages(tmp_path / "pack", "val", Picture.pixels)
    with pytest.raises(DataError, match=r"image 0 .* \(not an image\)$"):
        Picture(b"text", f"image 0 of val in {packed.file(0)}")


def test_a_class_of_other_files_is_refused_with_the_extensions_that_are_read(jpeg_tree: Path) -> None:
    for file in (jpeg_tree / "train/ant").iterdir():
        file.rename(file.with_suffix(".gif"))
    with pytest.raises(DataError, match=r"without images, fill or remove them: ant; images are \.jpg, .*\.webp$"):
        find_images(jpeg_tree / "train", ["ant", "bee"])


@pytest.mark.parametrize("page", ["README.md", "conf/data/imagefolder.yaml"])
def test_the_extensions_are_documented(page: str) -> None:
    text = (Path(__file__).parents[1] / page).read_text()
    assert all(re.search(rf"{re.escape(extension)}\b", text) for extension in IMG_EXTENSIONS)


# --- noah check-data


def test_check_data_names_each(jpeg_tree: Path) -> None:
    ant = jpeg_tree / "train/ant"
    for number, add in enumerate(SPECIAL):
        add(ant / f"special{number}.jpg")
    (ant / "loop").symlink_to(jpeg_tree)
    (ant / "itself.jpg").symlink_to(ant / "itself.jpg")
    Image.new("RGB", (32, 32), "red").save(ant / "moving.gif")
    (ant / f"{BROKEN}.jpg").write_text("not an image")
    (ant / LATIN).write_text("not an image either")
    Image.new("RGB", (7, 9), "green").save(ant / "small.png")
    for kind in ("jpg", "png", "webp", "tif"):
        for orientation in (1, 6):
            exif = Image.Exif()
            exif[ExifTags.Base.Orientation] = orientation
            Image.new("RGB", (32, 24), (9, 99, 10 * orientation)).save(ant / f"phone{orientation}.{kind}", exif=exif)
    for split in ("train", "val"):
        (jpeg_tree / split / BROKEN).mkdir()
        Image.new("RGB", (32, 24), (len(split), 2, 3)).save(jpeg_tree / split / BROKEN / "0.png")
    answer = call_noah("check-data", str(jpeg_tree), "--json")
    assert (answer.status, answer.err) == (1, "")
    report = json.loads(answer.out)
    assert report["classes"]["train"] == {"ant": 8 + 4 + 8, "bee": 8, r"line\nbreak": 1}
    found = {finding["kind"]: [finding["severity"], *finding["items"]] for finding in report["findings"]}
    assert len(found.pop("leak")) == 1 + 6  # plain images, the same in both splits
    assert found == {
        "circle": ["problem", "train/ant/loop"],
        "unreadable": [
            "problem",
            "train/ant/itself.jpg (Too many levels of symbolic links)",
            *(f"train/ant/special{number}.jpg (not a regular file)" for number in range(3)),
        ],
        "undecodable": [
            "problem",
            r"train/ant/caf\udce9.jpg (not an image)",
            r"train/ant/line\nbreak.jpg (not an image)",
        ],
        "tiny": ["problem", "train/ant/small.png (7 × 9)"],
        "turned": ["note", *(f"train/ant/phone6.{kind} (orientation 6)" for kind in ("jpg", "png", "webp"))],
        "ignored": ["note", "train/ant/moving.gif"],
    }
    shown = call_noah("check-data", str(jpeg_tree)).out
    assert "note: image with an EXIF orientation: data=imagefolder turns it, data=imagenet does not" in shown
    assert "note: file without an image extension (.jpg .jpeg .png .ppm .bmp .pgm .tif .tiff .webp), ignored" in shown
    assert shown.splitlines()[-1] == "14 problems of 5 kinds in 36 images, 4 notes"
