"""EXIF orientation: images are turned as PIL's ``exif_transpose`` turns them, or read as stored."""

import json
import shutil
import warnings
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import ExifTags, Image, ImageOps

from conftest import Answer
from noah_lightning.config.compose import compose_config
from noah_lightning.config.schema import RunConfig
from noah_lightning.data import create_data
from noah_lightning.data import image as decode_file
from noah_lightning.data.image import Picture, exif_orientation, jpeg_orientation
from noah_lightning.run_dir import RunDir
from noah_lightning.tools.pack import pack
from test_data_picture import photograph


def encoded(orientation: int | None, kind: str, **options: Any) -> bytes:
    stream, exif = BytesIO(), Image.Exif()
    exif[ExifTags.Base.Make] = "camera"
    if orientation is not None:
        exif[ExifTags.Base.Orientation] = orientation
    photograph().save(stream, kind, exif=exif, **options)
    return stream.getvalue()


def by_pil(data: bytes, upright: bool) -> torch.Tensor:
    with Image.open(BytesIO(data)) as image:
        seen = ImageOps.exif_transpose(image) if upright else image
        return torch.from_numpy(np.array(seen.convert("RGB"))).permute(2, 0, 1)


FORMATS: list[tuple[str, dict[str, Any]]] = [
    ("JPEG", {}),
    ("JPEG", {"progressive": True}),
    ("JPEG", {"keep_rgb": True}),
    ("PNG", {}),
    ("WEBP", {}),
    ("TIFF", {}),
]


@pytest.mark.parametrize(("kind", "options"), FORMATS)
@pytest.mark.parametrize("orientation", [None, *range(10)])
@pytest.mark.parametrize("upright", [True, False])
def test_the_pixels_are_those_of_pil(
    kind: str, options: dict[str, Any], orientation: int | None, upright: bool
) -> None:
    data = encoded(orientation, kind, **options)
    expected = by_pil(data, upright)
    picture = Picture(data, "image", upright)
    assert (picture.height, picture.width) == expected.shape[1:]
    for rows in (None, 1, 40):  # only as many rows as a crop needs are decoded where that is possible
        assert torch.equal(Picture(data, "image", upright).pixels(rows), expected[:, :rows])
    assert picture.pixels().permute(1, 2, 0).is_contiguous()


@pytest.mark.parametrize(
    "exif", [b"", b"Exif\0\0", b"Exif\0\0MM\0*" + b"\xff" * 40, b"Exif\0\0II*\0\x08\0\0\0\xff\xff"]
)
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # of PIL itself, here in the test
def test_damaged_exif_data_turn_nothing(exif: bytes) -> None:
    stream = BytesIO()
    photograph().save(stream, "JPEG", exif=exif)
    data = stream.getvalue()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        found = Picture(data, "image", upright=True).pixels()
    assert warned == []
    assert torch.equal(found, by_pil(data, upright=False))


def test_fill_bytes_before_a_segment_hide_no_orientation() -> None:
    data = encoded(6, "JPEG")
    at = data.index(b"\xff\xe1")
    data = data[:at] + b"\xff" + data[at:]
    assert jpeg_orientation(data) == 6


def test_a_jpeg_without_exif_data_is_never_opened_by_pil(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = BytesIO()
    photograph().save(stream, "JPEG")
    monkeypatch.setattr(decode_file.Image, "open", None)
    assert jpeg_orientation(stream.getvalue()) == 1


def test_an_upright_jpeg_with_exif_data_is_decoded_only_as_far_as_needed() -> None:
    data = encoded(1, "JPEG", quality=95)
    rubbish = data[: len(data) // 2] + bytes(range(200)) * 20 + data[-2:]
    upper = Picture(rubbish, "image", upright=True).pixels(20)
    assert torch.equal(upper, by_pil(data, upright=True)[:, :20])


@pytest.fixture
def phone(jpeg_tree: Path) -> Path:
    """The tree with one photograph that lies on its side."""
    (jpeg_tree / "val/ant/0.jpg").write_bytes(encoded(6, "JPEG"))
    return jpeg_tree


def first_image(name: str, root: Path, **settings: Any) -> torch.Tensor:
    data = create_data(name, root=str(root), num_classes=2, image_size=64, **settings)
    data.setup("validate")
    assert data.val_dataset is not None
    return data.val_dataset[0][0]


def test_folders_and_packs_are_turned_by_default(phone: Path, tmp_path: Path) -> None:
    pack(phone, tmp_path / "pack", 10**6)
    turned, stored = (first_image("imagefolder", phone, exif_orientation=value) for value in (True, False))
    assert not torch.equal(turned, stored)
    for name, root in (("imagefolder", phone), ("packed", tmp_path / "pack")):
        assert torch.equal(first_image(name, root), turned)
        assert torch.equal(first_image(name, root, exif_orientation=False), stored)


def test_a_pack_of_imagenet_is_read_as_its_folders_are(phone: Path, tmp_path: Path) -> None:
    pack(phone, tmp_path / "pack", 10**6)
    facts = tmp_path / "pack/pack.json"
    content = json.loads(facts.read_text())
    content["classes"] = [f"n{number:08}" for number in range(1000)]
    facts.write_text(json.dumps(content))
    stored = first_image("imagefolder", phone, exif_orientation=False)
    data = create_data("packed", root=str(tmp_path / "pack"), num_classes=1000, image_size=64)
    data.setup("validate")
    assert data.val_dataset is not None
    assert torch.equal(data.val_dataset[0][0], stored)


@pytest.mark.parametrize(("data", "expected"), [("imagefolder", True), ("imagenet", False), ("packed", None)])
def test_the_default_of_each_data_set(data: str, expected: bool | None) -> None:
    config = compose_config(["model=resnet18", f"data={data}", "data.root=/nowhere", "data.num_classes=2"])
    assert config.data.arguments()["exif_orientation"] is expected
    assert RunConfig.model_validate(config.model_dump()) == config


@pytest.mark.parametrize("data", ["imagefolder", "imagenet", "packed"])
def test_a_run_from_before_the_setting_reads_images_as_stored(data: str, tmp_path: Path) -> None:
    config = compose_config(["model=resnet18", f"data={data}", "data.root=/nowhere", "data.num_classes=2"])
    content = config.model_dump()
    del content["data"]["exif_orientation"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    run = RunDir(tmp_path)
    assert run.config(()).data.arguments()["exif_orientation"] is False
    assert run.config(["data.exif_orientation=true"]).data.arguments()["exif_orientation"] is True
    assert run.settings["data.exif_orientation"] is False, "and so it is compared with others"


def test_an_old_run_evaluates_as_it_was_trained(noah: Callable[..., Answer], phone: Path, tmp_path: Path) -> None:
    """Its accuracy is that of the images as stored; turned, each is taken for the other class."""
    for split in ("train", "val"):
        for label, name in enumerate(("ant", "bee")):  # stripes: across if stored, down if turned, and the reverse
            folder = phone / split / name
            shutil.rmtree(folder)
            folder.mkdir()
            stripes = np.zeros((32, 32, 3), np.uint8)
            stripes[::2] = 255
            image = Image.fromarray(stripes if label else stripes.transpose(1, 0, 2).copy())
            exif = Image.Exif()
            exif[ExifTags.Base.Orientation] = 6 if split == "val" else 1
            for number in range(8):
                image.save(folder / f"{number}.png", exif=exif)
    run = tmp_path / "run"
    answer = noah(
        "train",
        *("data=imagefolder", f"data.root={phone}", "data.image_size=32", "recipe=digits", "recipe.epochs=8"),
        *("model=timm", "model.name=test_resnet", "head=gap", "recipe.batch_size=8", "data.num_workers=0"),
        *("data.exif_orientation=false", f"hydra.run.dir={run}"),
    )
    assert answer.status == 0, answer.err
    assert RunDir(run).results().correct == 16
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("  exif_orientation: false\n", ""))
    assert "(16 of 16)" in noah("evaluate", str(run)).out
    assert "(0 of 16)" in noah("evaluate", str(run), "data.exif_orientation=true").out


def test_exif_orientation_of_an_image_without_one() -> None:
    assert exif_orientation(photograph()) == 1
