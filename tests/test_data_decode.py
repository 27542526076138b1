"""From a file to bytes: the fast way gives PIL's pixels, and what it cannot read goes the other way."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from noah_lightning.data import decode as decode_file
from noah_lightning.data.decode import read_rgb
from noah_lightning.errors import DataError


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
    image = read_rgb(file)
    assert image.dtype == torch.uint8
    assert image.shape == (3, 107, 161)
    assert image.permute(1, 2, 0).is_contiguous(), "the layout that torch scales fastest"
    assert torch.equal(image, expected)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_other_jpegs_become_rgb_as_pil_does_it(tmp_path: Path, mode: str) -> None:
    file = tmp_path / "image.jpg"
    photograph().convert(mode).save(file, quality=95)
    image = read_rgb(file)
    assert image.shape == (3, 107, 161)
    assert torch.equal(image, by_pil(file))


def test_a_jpeg_that_stores_rgb(tmp_path: Path) -> None:
    file = tmp_path / "image.jpg"
    photograph().save(file, quality=95, keep_rgb=True)
    assert torch.equal(read_rgb(file), by_pil(file))
    assert (read_rgb(file).int() - torch.tensor(np.array(photograph())).permute(2, 0, 1)).abs().float().mean() < 3


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "P", "1", "I;16"])
def test_other_formats_and_colour_models_become_rgb(tmp_path: Path, mode: str) -> None:
    image = Image.new("I;16", (161, 107), 200) if mode == "I;16" else photograph().convert(mode)
    image.save(tmp_path / "image.tif")
    result = read_rgb(tmp_path / "image.tif")
    assert result.shape == (3, 107, 161)
    assert result.dtype == torch.uint8


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "BMP"])
def test_the_name_does_not_matter(tmp_path: Path, kind: str) -> None:
    """ImageNet has a PNG that is called .JPEG."""
    photograph().save(tmp_path / "image.JPEG", kind)
    assert torch.equal(read_rgb(tmp_path / "image.JPEG"), by_pil(tmp_path / "image.JPEG"))


def test_a_jpeg_with_blemishes_that_pil_forgives(tmp_path: Path) -> None:
    """Stray bytes before a marker: libjpeg warns, which the fast way takes for an error."""
    stream = BytesIO()
    photograph().save(stream, "JPEG", quality=95)
    content = stream.getvalue()
    file = tmp_path / "image.jpg"
    file.write_bytes(content[:-2] + b"\x00\x00\x00" + content[-2:])
    assert torch.equal(read_rgb(file), by_pil(file))


@pytest.mark.parametrize("share", [0.0, 0.001, 0.02, 0.5, 0.98])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_file_that_is_cut_short_is_named(tmp_path: Path, share: float, kind: str) -> None:
    stream = BytesIO()
    photograph().save(stream, kind)
    content = stream.getvalue()
    file = tmp_path / "image.jpg"
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError) as caught:
        read_rgb(file)
    message = str(caught.value)
    assert message.startswith(f"{file} cannot be read as an image, replace or remove it (")
    assert "\n" not in message


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.jpg cannot be read as an image, .* \(.*No such file"):
        read_rgb(tmp_path / "gone.jpg")
