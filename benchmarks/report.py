"""Report and command line of a benchmark."""

import argparse
import json
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch

from noah_lightning.analysis.tables import Table
from noah_lightning.distributed.environment import cores
from noah_lightning.errors import MISTAKE, UserError
from noah_lightning.loggers.console import silence_libraries


@dataclass(frozen=True)
class Report:
    """Result of a benchmark, as a table and as JSON."""

    name: str
    table: Table
    figures: Sequence[Mapping[str, Any]]  # seconds, bytes and ratios of each case
    conclusions: Sequence[str] = ()  # lines below the table
    machine: Mapping[str, Any] = field(default_factory=lambda: machine())

    def show(self) -> None:
        print(" · ".join(f"{name} {value}" for name, value in self.machine.items() if value))
        self.table.show()
        for line in self.conclusions:
            print(line)

    def json(self) -> str:
        content = {
            "bench": self.name,
            "date": date.today().isoformat(),
            "command": " ".join(["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]]),
            "machine": dict(self.machine),
            "figures": [dict(figure) for figure in self.figures],
            "conclusions": list(self.conclusions),
        }
        return json.dumps(content, indent=2)


def machine() -> dict[str, Any]:
    """Hardware and versions."""
    return {
        "cpu": _cpu_name(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:  # not Linux
        names = []
    return names[0] if names else platform.processor()


def make_parser(description: str, timed: bool = True) -> argparse.ArgumentParser:
    """Parser with the options of all benchmarks; only what is ``timed`` has rounds."""
    parser = argparse.ArgumentParser(description=description)
    if timed:
        parser.add_argument("--rounds", type=partial(at_least, 1), default=7, metavar="N", help="default: 7")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def at_least(low: int, text: str) -> int:
    """Parse an integer of at least ``low``."""
    if not text.isdecimal() or int(text) < low:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer of at least {low}")
    return int(text)


def run(benchmark: Callable[[], Report], as_json: bool) -> None:
    """Run a benchmark and print its report; a user error is one line and exit status 2."""
    silence_libraries()
    try:
        report = benchmark()
    except UserError as error:
        print(f"benchmark: {error}", file=sys.stderr)
        sys.exit(MISTAKE)
    if as_json:
        print(report.json())
    else:
        report.show()
