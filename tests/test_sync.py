"""Offline W&B runs are found and handed to W&B's own command."""

import sys
from pathlib import Path

import pytest

from noah_lightning.errors import ConfigError, RunFailed
from noah_lightning.loggers import sync as sync_module
from noah_lightning.loggers.sync import sync, wandb_runs

RECORDER = "import sys; open('asked', 'a').write('\\n'.join(sys.argv[1:]) + '\\n')"


def make_wandb_run(run_dir: Path, name: str) -> Path:
    """What W&B leaves in a run directory."""
    kept = run_dir / "wandb" / name
    kept.mkdir(parents=True)
    (kept / f"run-{name.rpartition('-')[2]}.wandb").touch()
    return kept


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two jobs with offline runs, the first resumed once; an attempt set aside; a job that was online."""
    folder = tmp_path / "sweep"
    make_wandb_run(folder / "0", "offline-run-20260101_130000-aaaa")
    first = make_wandb_run(folder / "0", "offline-run-20260101_120000-aaaa")
    (first.parent / "latest-run").symlink_to(first.name)
    make_wandb_run(folder / "1", "offline-run-20260101_120500-bbbb")
    make_wandb_run(folder / "2", "run-20260101_120500-cccc")
    make_wandb_run(folder / ".unfinished" / "1-1", "offline-run-20260101_110000-bbbb")
    return folder


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With an API key, and a command in the place of W&B's that writes down what it is asked for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(sync_module, "UPLOAD", (sys.executable, "-c", RECORDER))
    return tmp_path / "asked"


def test_every_offline_run_is_uploaded_in_order(sweep: Path, asked: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert sync([sweep]) == 3
    names = [Path(line).name for line in asked.read_text().splitlines()]
    assert names == [
        "offline-run-20260101_120000-aaaa",
        "offline-run-20260101_130000-aaaa",
        "offline-run-20260101_120500-bbbb",
    ]
    assert capfd.readouterr().out == "uploaded 3 W&B runs\n"


def test_folders_that_overlap_give_each_run_once(sweep: Path, asked: Path) -> None:
    assert sync([sweep / "1", sweep]) == 3
    assert len(asked.read_text().splitlines()) == 3


def test_an_attempt_set_aside_is_found_when_it_is_named(sweep: Path) -> None:
    assert len(wandb_runs([sweep / ".unfinished" / "1-1"])) == 1


def test_what_is_uploaded_already_is_left_out(sweep: Path, asked: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for file in list(sweep.rglob("*.wandb")):
        if "bbbb" not in file.name:
            file.with_suffix(".wandb.synced").touch()
    assert sync([sweep]) == 1
    assert capfd.readouterr().out == "uploaded 1 W&B run, 2 before\n"
    for file in list(sweep.rglob("*.wandb")):
        file.with_suffix(".wandb.synced").touch()
    asked.unlink()
    assert sync([sweep]) == 0
    assert not asked.exists()


def test_offline_mode_does_not_keep_runs_from_being_uploaded(
    sweep: Path, asked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    recorder = RECORDER.replace("sys.argv[1:]", "['mode', str(__import__('os').environ.get('WANDB_MODE'))]")
    monkeypatch.setattr(sync_module, "UPLOAD", (sys.executable, "-c", recorder))
    sync([sweep])
    assert asked.read_text() == "mode\nNone\n"


@pytest.mark.usefixtures("asked")
def test_a_failed_upload_is_told(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync_module, "UPLOAD", (sys.executable, "-c", "raise SystemExit(3)"))
    with pytest.raises(RunFailed, match="wandb sync ended with exit status 3"):
        sync([sweep])


@pytest.mark.usefixtures("asked")
def test_without_a_key_nothing_is_uploaded(sweep: Path, asked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("NETRC", "/nowhere")
    with pytest.raises(ConfigError, match="no API key here; run wandb login, or set WANDB_API_KEY"):
        sync([sweep])
    assert not asked.exists()


def test_the_key_of_wandb_login_will_do(sweep: Path, asked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    (asked.parent / "netrc").write_text("machine api.wandb.ai\n  login user\n  password " + "0" * 40 + "\n")
    monkeypatch.setenv("NETRC", str(asked.parent / "netrc"))
    assert sync([sweep]) == 3


def test_without_runs_it_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no offline W&B run under .*; logger=wandb logger.mode=offline makes one"):
        sync([tmp_path])
    with pytest.raises(ConfigError, match="nowhere is no folder"):
        sync([tmp_path / "nowhere"])
