"""Measurement of how much of the contributions lies on the digit, in runs on the embedded digits."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.report import Report, at_least, make_parser, run
from noah_lightning.analysis.tables import Table
from noah_lightning.data import create_data
from noah_lightning.data.digits import DigitsDataModule
from noah_lightning.errors import ConfigError
from noah_lightning.models.explain import explain
from noah_lightning.models.feature_extractor import grid_shape
from noah_lightning.tools.trained import load_trained

IMAGES = 200
BATCH = 50


def bench_attention(folders: list[Path], images: int) -> Report:
    """Explain the true class of the first validation images of each run, with the weights of its best epoch.

    Args:
        folders: runs on the digits, whose heads explain their logits; a run with ``head=gap`` has class activation
            maps.
        images: number of images.
    """
    figures = [measure(folder, images) for folder in folders]
    columns = ("run", "head", "top-1", "contribution in the box", "attention in the box", "area of the box")
    rows = []
    for figure in figures:
        shares = [f"{100 * figure[key]:.1f} %" for key in ("top1", "contribution", "attention", "area")]
        rows.append((figure["run"], figure["head"], *shares))
    what = f"{images} validation images; means; positive contributions to the true class"
    return Report("attention", Table(columns, rows, left=columns[:2]), figures, [what])


def measure(folder: Path, images: int) -> dict[str, Any]:
    """Mean shares of one run: of what is positive in the contributions, and of the attention, in the digit's box."""
    config, model = load_trained(folder)
    data = create_data(**config.data.arguments())
    if not isinstance(data, DigitsDataModule):
        raise ConfigError(f"{folder} has data={config.data.name}; the digit has a known place in data=digits only")
    if data.settings.holdout:
        raise ConfigError(f"{folder} has data.holdout, whose images have other places; use a run without")
    data.setup("validate")
    assert data.val_dataset is not None
    inside = boxes(data)[:images]  # (B, H, W)
    if len(inside) < images:
        raise ConfigError(f"{folder} has {len(inside)} validation images; choose --images {len(inside)} or fewer")
    correct, contributions, attentions = 0, list[Tensor](), list[Tensor]()
    for start in range(0, images, BATCH):
        samples = [data.val_dataset[i] for i in range(start, min(start + BATCH, images))]
        labels = torch.tensor([label for _, label in samples])
        with torch.no_grad():
            why = explain(model, data.on_device.normalize(torch.stack([image for image, _ in samples])))
        each, box = torch.arange(len(labels)), inside[start : start + len(labels)]
        correct += int((why.logits.argmax(dim=1) == labels).sum())
        contributions.append(share_inside(why.contribution[each, labels].clamp(min=0), box))
        attentions.append(share_inside(why.attention[each, :, labels].mean(dim=1), box))
    return {
        "run": str(folder),
        "head": config.head.name,
        "images": images,
        "top1": correct / images,
        "contribution": float(torch.cat(contributions).nanmean()),
        "attention": float(torch.cat(attentions).mean()),
        "area": float(inside.mean()),
    }


def boxes(data: DigitsDataModule) -> Tensor:
    """1.0 on the square of the digit, else 0.0, for each validation image: (B, H, W)."""
    side, size = data.settings.digit_size, data.image_size
    corners = torch.from_numpy(data.layout("val").digit_at)  # (B, 2): row, column
    place = torch.arange(size)
    rows, columns = ((place >= at[:, None]) & (place < at[:, None] + side) for at in corners.T)  # (B, size)
    return (rows[:, :, None] & columns[:, None, :]).float()


def share_inside(values: Tensor, inside: Tensor) -> Tensor:
    """The share of values (B, L) within a box (B, H, W), (B,); a position is the part of the image that it covers.

    NaN for an image whose values are all zero.
    """
    grid = grid_shape(values.shape[1], inside.shape[1] / inside.shape[2])
    covered = F.interpolate(inside[:, None], size=grid, mode="area").flatten(1)  # (B, L)
    return (values * covered).sum(dim=1) / values.sum(dim=1)


def main() -> None:
    parser = make_parser("Share of the contributions on the digit, in runs on the embedded digits.", timed=False)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run on data=digits; of head=gap: CAM")
    about = f"default: {IMAGES}"
    parser.add_argument("--images", type=lambda text: at_least(1, text), default=IMAGES, metavar="N", help=about)
    options = parser.parse_args()
    run(lambda: bench_attention(options.runs, options.images), options.json)


if __name__ == "__main__":
    main()
