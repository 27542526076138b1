"""Memory that is freed stays with the process: page faults as the kernel counts them."""

import subprocess
import sys
from pathlib import Path

import pytest

from noah_lightning import train as assembly
from noah_lightning.config.compose import compose_config
from noah_lightning.distributed import environment as allocator

# Blocks as a training step has them, large and small, ten times over.
PROGRAM = """
import resource, sys
{}
def step():
    blocks = [bytearray(size << 20) for size in (64, 8, 40, 1)]
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
KEEP = "from noah_lightning.distributed.environment import keep_freed_memory; keep_freed_memory()"


def page_faults(first: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(first)], capture_output=True, text=True, check=True, timeout=60
    )
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_what_a_step_frees_serves_the_next_one() -> None:
    pages = 113 * 256  # of 4 KiB, in a step
    assert page_faults("") > 5 * pages  # or there would be nothing to do
    assert page_faults(KEEP) < pages / 100


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_other_systems_are_left_alone(platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(allocator.ctypes, "CDLL", None)
    allocator.keep_freed_memory()


def test_every_trainer_sees_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(assembly, "keep_freed_memory", lambda: calls.append("kept"))
    assembly.make_trainer(compose_config(["experiment=demo"]), tmp_path, logger=False)
    assert calls == ["kept"]
