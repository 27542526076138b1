"""What a benchmark found, with the machine it was found on."""

import json
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import torch

from noah_lightning.processes import cores
from noah_lightning.tables import Table


@dataclass(frozen=True)
class Report:
    """A table for people, the same figures for machines.

    Attributes:
        name: of the benchmark.
        table: as it is shown.
        figures: one mapping per measured case; seconds, bytes, ratios.
        conclusions: lines below the table.
    """

    name: str
    table: Table
    figures: Sequence[Mapping[str, Any]]
    conclusions: Sequence[str] = ()
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
            "command": " ".join(["noah", *sys.argv[1:]]),
            "machine": dict(self.machine),
            "figures": [dict(figure) for figure in self.figures],
            "conclusions": list(self.conclusions),
        }
        return json.dumps(content, indent=2)


def machine() -> dict[str, Any]:
    """What runs the benchmark."""
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
