"""Pictures of what decides the logits of a trained model for images (``noah attention``)."""

import io
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from noah_lightning.analysis.attention_pictures import ClassMaps, Predictions, draw_explanation
from noah_lightning.analysis.gallery import Card, gallery
from noah_lightning.analysis.tables import Table
from noah_lightning.errors import ConfigError, one_line, printable
from noah_lightning.heads.base import Explanation
from noah_lightning.models.explain import explain
from noah_lightning.tools.images_to_explain import Images, NamedImage
from noah_lightning.tools.trained import ClassNames, Trained

MOST_BLOCKS = 8  # drawn unless blocks are named
TOP = 5  # classes among the predictions
GALLERY = "index.html"


@dataclass(frozen=True)
class Asked:
    """Which classes are drawn, besides the predicted and the true one, and which attention blocks, from 1."""

    classes: Sequence[str] = ()
    blocks: Sequence[int] = ()
    contrast: tuple[str, str] | None = None


@dataclass
class Found:
    """Rows of the tables: the most probable classes of each image, and the logit of each class that was drawn."""

    predictions: list[list[str]] = field(default_factory=list)
    sums: list[list[str]] = field(default_factory=list)

    def tables(self) -> tuple[Table, Table]:
        places = ["predicted", *(f"{place}." for place in range(2, TOP + 1))]
        columns = ["image", "true", *places[: len(self.predictions[0]) - 2]]
        logits = ["image", "class", "logit", "sum of contributions"]
        return Table(columns, self.predictions, left=columns), Table(logits, self.sums, left=logits[:2])


def attention(trained: Trained, words: Sequence[str], output: Path, asked: Asked) -> Found:
    """Explain images, and write a PNG for each and a gallery of all into the new folder ``output``.

    Args:
        trained: the model.
        words: names of images, see :class:`Images`.
        output: it exists once it is complete.
        asked: what is drawn.

    Raises:
        UserError: images that are missing or unreadable, an unknown class or block, a head that does not explain its
            logits, or ``output`` exists or cannot be written.
    """
    if output.exists():
        raise ConfigError(f"{output} already exists; choose another --output, or remove it")
    images, found, cards = Images(trained, words), Found(), list[Card]()
    classes = [images.names.find(name) for name in asked.classes]
    contrast = [images.names.find(name) for name in asked.contrast or ()]
    for image in images:
        with torch.no_grad():
            why = explain(trained.model, trained.normalize(image.pixels[None]))
        probabilities = why.logits[0].sigmoid() if trained.multilabel else why.logits[0].softmax(dim=0)
        rows = _rows(image, why, images.names, classes, contrast, asked.blocks, probabilities)
        best = _best(probabilities, images.names)
        _record(found, image, best, images.names, rows)
        number = f"{len(cards):0{len(str(len(images) - 1))}}"
        cards.append(
            Card(image.name, f"{number}_{_file_name(image.name)}.png", _draw(image, best, images.names, rows))
        )
    page = gallery(trained.name, found.tables(), cards)
    files = {card.file: card.png for card in cards}
    _write(output, {**files, GALLERY: page.encode(errors="backslashreplace")})
    return found


def _write(output: Path, files: Mapping[str, bytes]) -> None:
    """Write the files into the new folder, which exists once all of them are in it."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as unfinished:
            folder = Path(unfinished) / output.name
            folder.mkdir()
            for name, content in files.items():
                (folder / name).write_bytes(content)
            folder.rename(output)
    except OSError as error:
        raise ConfigError(f"{output} cannot be written: {one_line(error)}") from error


def _rows(
    image: NamedImage,
    why: Explanation,
    names: ClassNames,
    classes: Sequence[int],
    contrast: Sequence[int],
    blocks: Sequence[int],
    probabilities: Tensor,
) -> list[ClassMaps]:
    """The predicted, the true and the named classes, each once, and the contrast of two."""
    number = why.attention.shape[1]
    if wrong := [block for block in blocks if block > number]:
        raise ConfigError(f"--head {wrong[0]}: the head's attention has {number} blocks, numbered from 1")
    roles: dict[int, list[str]] = {int(why.logits[0].argmax()): ["predicted"]}
    for role, several in (("true", image.true), ("named", classes)):
        for k in several:
            if role not in roles.setdefault(k, []):
                roles[k].append(role)
    rows = []
    for k, given in roles.items():
        maps = {n: why.attention[0, n - 1, k] for n in blocks or range(1, min(number, MOST_BLOCKS) + 1)}
        title = f"{' and '.join(given)}: {names.names[k]}"
        rows.append(ClassMaps(title, why.contribution[0, k], float(why.logits[0, k]), maps, float(probabilities[k])))
    if contrast:
        a, b = contrast
        difference = float(why.logits[0, a] - why.logits[0, b])
        title = f"{names.names[a]} over {names.names[b]}"
        rows.append(ClassMaps(title, why.contribution[0, a] - why.contribution[0, b], difference, {}))
    return rows


def _record(found: Found, image: NamedImage, best: Predictions, names: ClassNames, rows: Sequence[ClassMaps]) -> None:
    """Add the rows of an image to the tables."""
    true = ", ".join(names.names[k] for k in image.true)
    predicted = [f"{name} {100 * value:.1f} %" for name, value in best]
    found.predictions.append([printable(image.name), true, *predicted])
    for row in rows:
        values = [f"{value:.4f}".replace("-", "−") for value in (row.logit, float(row.contribution.sum()))]
        found.sums.append([printable(image.name), row.title, *values])


def _best(probabilities: Tensor, names: ClassNames) -> Predictions:
    values, classes = probabilities.topk(min(TOP, len(probabilities)))
    return [(names.names[k], float(value)) for k, value in zip(classes.tolist(), values, strict=True)]


def _draw(image: NamedImage, best: Predictions, names: ClassNames, rows: Sequence[ClassMaps]) -> bytes:
    """The picture of an image as PNG."""
    true = {names.names[k] for k in image.true}
    file = io.BytesIO()
    draw_explanation(image.pixels, printable(image.name), best, true, rows).savefig(file, dpi=100)
    return file.getvalue()


def _file_name(name: str) -> str:
    """The last part of a path, or ``val-7``, without characters that a file system or a browser may not take."""
    return re.sub(r"[^\w.-]", "-", name if name.startswith("val:") else Path(name).stem, flags=re.ASCII)[:80]
