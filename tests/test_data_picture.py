"""From a file to bytes: the fast way gives PIL's pixels, of a JPEG's upper part too; the rest goes the other way."""

import contextlib
import importlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from noah_lightning.data import image as decode_file
from noah_lightning.data.image import Picture, sequential_jpeg
from noah_lightning.errors import ConfigError, DataError


def photograph(width: int = 161, height: int = 107) -> Image.Image:
    """Real, with sides that no block of pixels divides."""
    return Image.fromarray(load_sample_image("flower.jpg")).resize((width, height))


def by_pil(path: Path) -> torch.Tensor:
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
def test_the_usual_jpegs_bytes_are_those_of_pil(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, subsampling: str, progressive: bool
) -> None:
    file = tmp_path / "image.jpg"
    photograph().save(file, quality=95, subsampling=subsampling, progressive=progressive)
    expected = by_pil(file)
    monkeypatch.setattr(decode_file.Image, "open", None)  # PIL has no part in it
    image = Picture.read(file).pixels()
    assert image.dtype == torch.uint8
    assert image.shape == (3, 107, 161)
    assert image.permute(1, 2, 0).is_contiguous(), "the layout that torch scales fastest"
    assert torch.equal(image, expected)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_other_jpegs_become_rgb_as_pil_does_it(tmp_path: Path, mode: str) -> None:
    file = tmp_path / "image.jpg"
    photograph().convert(mode).save(file, quality=95)
    image = Picture.read(file).pixels()
    assert image.shape == (3, 107, 161)
    assert torch.equal(image, by_pil(file))


def test_a_jpeg_that_stores_rgb(tmp_path: Path) -> None:
    file = tmp_path / "image.jpg"
    photograph().save(file, quality=95, keep_rgb=True)
    assert torch.equal(Picture.read(file).pixels(), by_pil(file))
    assert (
        Picture.read(file).pixels().int() - torch.tensor(np.array(photograph())).permute(2, 0, 1)
    ).abs().float().mean() < 3


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "P", "1", "I;16"])
def test_other_formats_and_colour_models_become_rgb(tmp_path: Path, mode: str) -> None:
    image = Image.new("I;16", (161, 107), 200) if mode == "I;16" else photograph().convert(mode)
    image.save(tmp_path / "image.tif")
    result = Picture.read(tmp_path / "image.tif").pixels()
    assert result.shape == (3, 107, 161)
    assert result.dtype == torch.uint8


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "BMP"])
def test_the_name_does_not_matter(tmp_path: Path, kind: str) -> None:
    """ImageNet has a PNG that is called .JPEG."""
    photograph().save(tmp_path / "image.JPEG", kind)
    assert torch.equal(Picture.read(tmp_path / "image.JPEG").pixels(), by_pil(tmp_path / "image.JPEG"))


def test_a_jpeg_with_blemishes_that_pil_forgives(tmp_path: Path) -> None:
    """Stray bytes before a marker: libjpeg warns, which the fast way takes for an error."""
    stream = BytesIO()
    photograph().save(stream, "JPEG", quality=95)
    content = stream.getvalue()
    file = tmp_path / "image.jpg"
    file.write_bytes(content[:-2] + b"\x00\x00\x00" + content[-2:])
    assert torch.equal(Picture.read(file).pixels(), by_pil(file))


@pytest.mark.parametrize("share", [0.0, 0.001, 0.02, 0.5, 0.98])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_file_that_is_cut_short_is_named(tmp_path: Path, share: float, kind: str) -> None:
    stream = BytesIO()
    photograph().save(stream, kind)
    content = stream.getvalue()
    file = tmp_path / "image.jpg"
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError) as caught:
        Picture.read(file).pixels()
    message = str(caught.value)
    assert message.startswith(f"{file} cannot be read as an image, replace or remove it (")
    assert "\n" not in message


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.jpg cannot be read as an image, .* \(.*No such file"):
        Picture.read(tmp_path / "gone.jpg").pixels()


def encoded(kind: str, **options: Any) -> bytes:
    stream = BytesIO()
    photograph().save(stream, kind, **options)
    return stream.getvalue()


class TestUpperPart:
    @pytest.mark.parametrize("colors", ["444", "422", "420", "440", "411"])
    def test_any_number_of_rows_is_the_top_of_the_whole(self, colors: str) -> None:
        data = simplejpeg.encode_jpeg(np.array(photograph()), quality=95, colorsubsampling=colors)
        whole = torch.from_numpy(simplejpeg.decode_jpeg(data)).permute(2, 0, 1)
        for rows in range(1, 108):
            upper = Picture(data, "image").pixels(rows)
            assert torch.equal(upper, whole[:, :rows])
            assert upper.permute(1, 2, 0).is_contiguous()

    @pytest.mark.parametrize(
        ("kind", "options"),
        [
            ("JPEG", {"restart_marker_rows": 1}),
            ("JPEG", {"optimize": True, "exif": b"Exif\x00\x00" + bytes(3000), "comment": "\xff\xda\xff\xc0"}),
            ("JPEG", {"progressive": True}),
            ("JPEG", {"keep_rgb": True}),
            ("PNG", {}),
            ("WEBP", {}),
        ],
    )
    def test_of_any_file(self, kind: str, options: dict[str, Any]) -> None:
        data = encoded(kind, **options)
        picture = Picture(data, "image")
        assert (picture.height, picture.width) == (107, 161)
        with Image.open(BytesIO(data)) as image:
            expected = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
        for rows in (1, 40, 107):
            assert torch.equal(picture.pixels(rows), expected[:, :rows])

    def test_what_lies_below_is_not_decoded(self) -> None:
        """Rubbish in the lower half of the file does no harm to the upper rows, which come first in it."""
        data = encoded("JPEG", quality=95)
        rubbish = data[: len(data) // 2] + bytes(range(200)) * 20 + data[-2:]
        assert torch.equal(Picture(rubbish, "image").pixels(20), Picture(data, "image").pixels()[:, :20])
        with pytest.raises(ValueError, match="Corrupt"):
            simplejpeg.decode_jpeg(rubbish)

    @pytest.mark.parametrize(
        ("options", "partly"), [({}, True), ({"progressive": True}, False), ({"keep_rgb": True}, False)]
    )
    def test_of_which_jpegs(self, options: dict[str, Any], partly: bool) -> None:
        """Those of ImageNet; a progressive one needs all of its scans for the first row."""
        assert (sequential_jpeg(encoded("JPEG", **options)) is not None) is partly

    def test_a_file_that_is_cut_short_is_refused_whatever_is_asked_for(self) -> None:
        """Or it would depend on the crop."""
        data = encoded("JPEG", quality=95)
        with pytest.raises(DataError, match="image cannot be read"):
            Picture(data[: len(data) * 9 // 10], "image").pixels(1)

    @pytest.mark.parametrize("place", range(2, 400, 7))
    def test_a_damaged_header_is_an_error_or_a_picture(self, place: int) -> None:
        data = bytearray(encoded("JPEG"))
        data[place] ^= 0xFF
        with contextlib.suppress(DataError):
            picture = Picture(bytes(data), "image")
            rows = min(picture.height, 9)
            assert picture.pixels(rows).shape == (3, rows, picture.width)


@pytest.mark.parametrize("value", ["0", "-1", "1e6", ""])
def test_a_limit_of_pixels_that_is_not_one(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("NOAH_MAX_IMAGE_PIXELS", value)
    with pytest.raises(ConfigError, match=rf"^NOAH_MAX_IMAGE_PIXELS='{value}' must be an integer of at least 1$"):
        importlib.reload(decode_file)
