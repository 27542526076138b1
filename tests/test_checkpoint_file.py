"""Checkpoint files: whole or not there, and checked when they are read."""

import os
import resource
import signal
from pathlib import Path

import pytest
import torch

from noah_lightning.callbacks.checkpoints import WholeFiles, read_checkpoint
from noah_lightning.errors import WeightsError

CONTENT = {"state_dict": {"weight": torch.arange(1000.0)}, "global_step": 7}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "step.ckpt"
    WholeFiles().save_checkpoint(CONTENT, path)
    return path


def test_it_comes_back(saved: Path) -> None:
    content = read_checkpoint(saved)
    assert content["global_step"] == 7
    assert torch.equal(content["state_dict"]["weight"], torch.arange(1000.0))
    assert [path.name for path in saved.parent.iterdir()] == ["step.ckpt"]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_file_is_found(saved: Path, share: float) -> None:
    data = saved.read_bytes()
    saved.write_bytes(data[: int(share * len(data))])
    with pytest.raises(WeightsError, match=r"step\.ckpt cannot be read as a checkpoint"):
        read_checkpoint(saved)


def test_every_flipped_bit_of_the_content_is_found(saved: Path) -> None:
    """The content is what the checksums are of; padding and unused header fields are not."""
    whole = saved.read_bytes()
    changed = 0
    for place in range(0, len(whole), 97):
        saved.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        try:
            content = read_checkpoint(saved)
        except WeightsError:
            changed += 1
        else:
            assert torch.equal(content["state_dict"]["weight"], CONTENT["state_dict"]["weight"])
            assert content["global_step"] == 7
    assert changed > 30  # of some 60


def test_a_full_disk_keeps_the_old_file(saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    """RLIMIT_FSIZE makes the system refuse to write on, as a full disk does."""
    before = saved.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    heard = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    files = WholeFiles()
    try:
        files.save_checkpoint({**CONTENT, "global_step": 8}, saved)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, heard)
    assert files.failed
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == ["step.ckpt"]
    assert read_checkpoint(saved)["global_step"] == 7
    files.save_checkpoint({**CONTENT, "global_step": 9}, saved)
    assert not files.failed
    assert read_checkpoint(saved)["global_step"] == 9


def test_a_process_killed_while_writing_keeps_the_old_file(saved: Path) -> None:
    child = os.fork()
    if child == 0:
        try:
            os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)
            WholeFiles().save_checkpoint({"global_step": 8}, saved)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    assert read_checkpoint(saved)["global_step"] == 7


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> object:
            return Path.touch, (tmp_path / "touched",)

    torch.save({"state_dict": {}, "global_step": Hostile()}, tmp_path / "hostile.ckpt")
    with pytest.raises(WeightsError, match="cannot be read as a checkpoint"):
        read_checkpoint(tmp_path / "hostile.ckpt")
    assert not (tmp_path / "touched").exists()
