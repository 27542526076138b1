"""Gallery of pictures of ``noah attention``: one page that opens offline."""

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass

from noah_lightning.analysis.page import render
from noah_lightning.analysis.tables import Table
from noah_lightning.errors import count, printable


@dataclass(frozen=True)
class Card:
    """A picture in the gallery."""

    name: str
    file: str
    png: bytes

    @property
    def source(self) -> str:
        """The picture as a data URI."""
        return f"data:image/png;base64,{b64encode(self.png).decode()}"


def gallery(model: str, tables: tuple[Table, Table], cards: Sequence[Card]) -> str:
    """The page: what the colors mean, the table of predictions, a picture for each image, the table of sums."""
    title = f"Attention over {count(len(cards), 'image')}"
    predictions, sums = tables
    named = [(printable(card.name), card.source) for card in cards]
    return render(
        "gallery.html", title=title, model=printable(model), predictions=predictions, sums=sums, pictures=named
    )
