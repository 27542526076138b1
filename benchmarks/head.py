"""Benchmark of NOAH's head against its definition and against GAP, alone and in complete training steps."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.memory import peak_memory
from benchmarks.report import Report, make_parser, run
from benchmarks.timing import Spread, alternate, ratio, spread
from noah_lightning.analysis.tables import Table
from noah_lightning.heads import NOAHHead
from noah_lightning.models.rows import create_row

CLASSES = 1000
# Feature maps and heads of rows of the paper: channels, positions, N, r.
SHAPES = {
    "resnet18": (512, 49, 4, 1 / 2),
    "resnet50": (2048, 49, 4, 1 / 8),
    "mobilenetv2": (1280, 49, 8, 1 / 4),
    "deit_tiny": (192, 196, 4, 1 / 2),
    "deit_base": (768, 196, 4, 1 / 2),
}
Work = Callable[[], object]


class _GAP(nn.Module):
    """Global average pooling and a linear layer, over (B, C, L)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, CLASSES)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(features.mean(2))


def bench_head(rounds: int) -> Report:
    """Time of the head alone: forward and backward with and without dropout, and forward in evaluation mode.

    With 64 images in float32 on a CPU, and 256 with bfloat16 autocast on a GPU.
    """
    device = _device()
    figures, cells = [], []
    rate = _matrix_product_rate(device, rounds)
    for shape, (channels, positions, *_) in SHAPES.items():
        for mode, dropout in (("train", 0.0), ("train", 0.1), ("eval", 0.0)):
            work = _heads(shape, dropout, training=mode == "train", device=device)
            seconds = alternate(work, rounds)
            gain = ratio(seconds, "definition", "ours")
            # forward, recomputation, gradients of features and of weights; or only forward
            passes = 4 if mode == "train" else 1
            floor = passes * 2 * _batch(device) * positions * CLASSES * channels / rate
            medians = {name: statistics.median(times) for name, times in seconds.items()}
            figures.append(
                {"shape": shape, "mode": mode, "dropout": dropout, "seconds": medians, "floor_seconds": floor}
                | {"definition_over_ours": asdict(gain)}
            )
            kind = f"{mode}, dropout {dropout:g}" if mode == "train" else mode
            cells.append([shape, kind, *(_ms(medians[name]) for name in work), _ms(floor), _times(gain)])
    columns = ["shape", "mode", "definition", "ours", "GAP", "floor", "definition / ours"]
    return Report(
        "head",
        Table(columns, cells, left=("shape", "mode")),
        figures,
        [
            f"milliseconds, {_batch(device)} images, {CLASSES} classes",
            f"floor: multiply-adds, scores and values twice, at the {rate / 1e9:,.0f} GFLOP/s of one matrix product",
            *_geometric_means(figures),
        ],
    )


def bench_memory() -> Report:
    """Peak memory of a training step of the head alone with dropout 0.1, without features and parameters."""
    device = _device()
    figures, cells = [], []
    for shape in SHAPES:
        work = _heads(shape, 0.1, training=True, device=device)
        peaks = {name: peak_memory(one, device) for name, one in work.items()}
        share = peaks["ours"] / peaks["definition"]
        figures.append({"shape": shape, "bytes": peaks, "ours_over_definition": share})
        cells.append([shape, *(f"{peak / 1e6:,.1f} MB" for peak in peaks.values()), f"{100 * share:.1f} %"])
    table = Table(["shape", "definition", "ours", "GAP", "ours / definition"], cells, left=("shape",))
    note = f"forward and backward, {_batch(device)} images, {CLASSES} classes, including the returned gradients"
    return Report("head --profile", table, figures, [note])


def bench_models(rows: Sequence[str], rounds: int) -> Report:
    """Time of complete training steps of rows of the paper, with NOAH and with their own classifier.

    Raises:
        UserError: an unknown row.
    """
    device = _device()
    figures, cells = [], []
    for row in rows:
        work = {head: _training_step(row, head, device) for head in ("gap", "noah")}
        seconds = alternate(work, rounds)
        cost = ratio(seconds, "noah", "gap")
        medians = {name: statistics.median(times) for name, times in seconds.items()}
        figures.append({"row": row, "seconds": medians, "noah_over_gap": asdict(cost)})
        cells.append([row, _ms(medians["gap"]), _ms(medians["noah"]), _times(cost, digits=3)])
    table = Table(["row", "GAP", "NOAH", "NOAH / GAP"], cells, left=("row",))
    note = f"milliseconds of a training step (forward, backward, SGD), {_batch(device)} images of 224 pixels"
    return Report("head --models", table, figures, [note])


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _batch(device: torch.device) -> int:
    return 256 if device.type == "cuda" else 64


def _heads(shape: str, dropout: float, training: bool, device: torch.device) -> dict[str, Work]:
    """The definition, our implementation and GAP over the same features."""
    channels, positions, heads, key_ratio = SHAPES[shape]
    torch.manual_seed(0)
    features = torch.randn(_batch(device), channels, positions, device=device, requires_grad=training)
    gradient = torch.randn(_batch(device), CLASSES, device=device)
    ours = NOAHHead(channels, CLASSES, heads, key_ratio, dropout)
    definition = NOAHHead(channels, CLASSES, heads, key_ratio, dropout, kernel="definition")
    modules = {"definition": definition, "ours": ours, "gap": _GAP(channels)}
    step = _train if training else _evaluate
    return {name: step(module.to(device).train(training), features, gradient) for name, module in modules.items()}


def _train(module: nn.Module, features: Tensor, gradient: Tensor) -> Work:
    inputs = [features, *module.parameters()]

    def work() -> object:
        with _precision(features.device):
            logits = module(features)
        return torch.autograd.grad(logits, inputs, gradient.to(logits.dtype))

    return work


def _evaluate(module: nn.Module, features: Tensor, gradient: Tensor) -> Work:
    def work() -> object:
        with torch.no_grad(), _precision(features.device):
            return module(features)

    return work


def _training_step(row: str, head: str, device: torch.device) -> Work:
    """A training step of a row of the paper at 224 pixels, in bfloat16 on a GPU."""
    torch.manual_seed(0)
    model = create_row(row, head)
    model = model.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    images = torch.randn(_batch(device), 3, 224, 224, device=device).to(memory_format=torch.channels_last)
    labels = torch.randint(CLASSES, (len(images),), device=device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def work() -> None:
        optimizer.zero_grad(set_to_none=True)
        with _precision(device):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()

    return work


def _precision(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def _matrix_product_rate(device: torch.device, rounds: int) -> float:
    """Floating-point operations per second of a 1024³ product (8192³ in bfloat16 on a GPU)."""
    side, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (1024, torch.float32)
    left, right = torch.randn(2, side, side, device=device, dtype=dtype)
    seconds = alternate({"product": lambda: left @ right}, 3 * rounds)["product"]
    return 2 * side**3 / spread(seconds).median


def _geometric_means(figures: Sequence[dict[str, Any]]) -> list[str]:
    lines = []
    for mode, dropout in (("train", 0.0), ("train", 0.1), ("eval", 0.0)):
        gains = [
            figure["definition_over_ours"]["median"]
            for figure in figures
            if (figure["mode"], figure["dropout"]) == (mode, dropout)
        ]
        kind = f"{mode}, dropout {dropout:g}" if mode == "train" else mode
        lines.append(f"{kind}: geometric mean {statistics.geometric_mean(gains):.2f}×, least {min(gains):.2f}×")
    return lines


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:,.1f}"


def _times(value: Spread, digits: int = 2) -> str:
    return f"{value.median:.{digits}f}× ({value.low:.{digits}f}–{value.high:.{digits}f})"


def main() -> None:
    parser = make_parser("NOAH compared with its definition and with GAP.")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--profile", action="store_true", help="memory instead of time")
    what.add_argument("--models", nargs="+", metavar="ROW", help="complete training steps of rows instead")
    options = parser.parse_args()
    if options.profile:
        run(bench_memory, options.json)
    elif options.models:
        run(lambda: bench_models(options.models, options.rounds), options.json)
    else:
        run(lambda: bench_head(options.rounds), options.json)


if __name__ == "__main__":
    main()
