"""What gives out under way: a line that says so, the exit status, and what survives."""

import errno
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from torch import Tensor

from conftest import TINY, Answer, call_noah
from noah_lightning.callbacks.checkpoints import read_checkpoint
from noah_lightning.callbacks.progress import EpochReport
from noah_lightning.distributed.environment import rank
from noah_lightning.distributed.launcher import run_in_processes
from noah_lightning.errors import RunFailed
from noah_lightning.loggers import console
from noah_lightning.loggers.metrics_csv import MetricsFile
from noah_lightning.run_dir import RunDir
from noah_lightning.task import ClassificationTask

Noah = Callable[..., Answer]
RUN = [*TINY, "head=gap", "hydra.run.dir=run", "checkpoint.every_n_steps=1"]  # 2 × 3 steps
LAST = Path("run/checkpoints/last.ckpt")


def at(monkeypatch: pytest.MonkeyPatch, epoch: int, batch: int, what: Callable[[], object]) -> None:
    """Do ``what`` before a training step, both counted from 0."""
    real = ClassificationTask.training_step

    def step(self: ClassificationTask, images: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        if (self.current_epoch, batch_idx) == (epoch, batch):
            what()
        return real(self, images, batch_idx)

    monkeypatch.setattr(ClassificationTask, "training_step", step)


def folder_run(tree: Path, workers: int = 1) -> list[str]:
    """Two epochs of four steps."""
    data = ["data=imagefolder", f"data.root={tree}", "data.image_size=32", f"data.num_workers={workers}"]
    model = ["model=timm", "model.name=test_resnet", "head=gap", "recipe.batch_size=4", "recipe.optimizer.lr=0.01"]
    return [*model, *data, "trainer.max_epochs=2", "hydra.run.dir=run"]


def lines(answer: Answer, status: int) -> str:
    """The one line on standard error."""
    assert (answer.status, answer.err.count("\n")) == (status, 1), answer.err
    assert answer.err.startswith("noah: ")
    return answer.err.removeprefix("noah: ").rstrip("\n")


# --- loading


def test_a_loading_process_that_dies_ends_the_run_in_one_line(
    noah: Noah, jpeg_tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill() -> None:
        for process in multiprocessing.active_children():
            os.kill(process.pid, signal.SIGKILL)

    with monkeypatch.context() as patch:
        at(patch, 1, 1, kill)
        line = lines(noah("train", *folder_run(jpeg_tree)), 1)
    assert line.startswith("a DataLoader worker died, perhaps out of memory: ")
    assert "data.num_workers" in line
    assert line in Path("run/train.log").read_text()
    assert read_checkpoint(LAST)["global_step"] == 4
    answer = noah("resume", "run")
    assert answer.status == 0, answer.err
    assert RunDir(Path("run")).results().epochs == 2


@pytest.mark.parametrize(
    ("happens", "begins", "ends"),
    [
        ("worker", "a DataLoader worker died, perhaps out of memory: ", "then noah evaluate 'a run'"),
        ("memory", "out of GPU memory with 4 images at a time", "add data.batch_size=2 to the command"),
    ],
)
def test_an_evaluation_that_fails_ends_in_one_line(
    noah: Noah, jpeg_tree: Path, monkeypatch: pytest.MonkeyPatch, happens: str, begins: str, ends: str
) -> None:
    def fail(task: ClassificationTask, *_: object) -> None:
        if happens == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        for process in multiprocessing.active_children():
            os.kill(process.pid, signal.SIGKILL)
        time.sleep(1)  # torch's handler raises the error here, or the next batch does

    words = [*folder_run(jpeg_tree)[:-2], "trainer.max_epochs=1", "hydra.run.dir=a run"]
    assert noah("train", *words).status == 0
    monkeypatch.setattr(ClassificationTask, "validation_step", fail)
    line = lines(noah("evaluate", "a run"), 1)
    assert line.startswith(begins)
    assert line.endswith(ends)


@pytest.mark.parametrize("step", ["training_step", "validation_step"])
def test_workers_that_die_one_after_another_end_the_run_in_one_line(
    noah: Noah, jpeg_tree: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """One in the step, one while Lightning handles that error, the rest while the one line is written."""
    moments: list[str] = []
    loaders = {"training_step": "train", "validation_step": "val"}
    pids: dict[str, list[int]] = {}
    real_step, real_write = getattr(ClassificationTask, step), console.write_to_log_only

    def kill(pid: int) -> None:
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # SIGCHLD has been sent

    def step_and_kill(task: ClassificationTask, *arguments: object) -> object:
        if task.current_epoch == 1 and not moments:
            moments.append("step")
            found = {"train": task.trainer.train_dataloader, "val": task.trainer.val_dataloaders}
            pids.update({name: [w.pid for w in loader._iterator._workers] for name, loader in found.items()})
            kill(pids[loaders[step]].pop())
        return real_step(task, *arguments)

    def kill_in_teardown(task: ClassificationTask, *_: object) -> None:
        moments.append("teardown")
        kill(pids["val"].pop())

    def kill_and_write(line: str) -> None:
        moments.append("write")
        alive = {process.pid for process in multiprocessing.active_children()}
        for pid in [*pids["train"], *pids["val"]]:
            kill(pid)
        assert not alive & {*pids["train"], *pids["val"]}, "all workers have been stopped before"
        real_write(line)

    monkeypatch.setattr(ClassificationTask, step, step_and_kill)
    monkeypatch.setattr(EpochReport, "on_exception", kill_in_teardown)
    monkeypatch.setattr(console, "write_to_log_only", kill_and_write)
    line = lines(noah("train", *folder_run(jpeg_tree, workers=2)), 1)
    assert moments == ["step", "teardown", "write"]
    assert line.startswith("a DataLoader worker died, perhaps out of memory: DataLoader worker (pid ")


def test_an_unreadable_training_image_is_replaced_where_it_may_be(noah: Noah, jpeg_tree: Path) -> None:
    (jpeg_tree / "train/ant/3.jpg").write_text("not an image")
    answer = noah("train", *folder_run(jpeg_tree), "data.max_unreadable=1")
    assert answer.status == 0, answer.err
    assert answer.out.count("train/ant/3.jpg cannot be read as an image") == 1  # in two epochs
    assert "; it is replaced by the next one" in answer.out


def test_too_many_unreadable_training_images_end_the_run(noah: Noah, jpeg_tree: Path) -> None:
    for name in ("ant/3.jpg", "bee/5.jpg"):
        (jpeg_tree / "train" / name).write_text("not an image")
    line = lines(noah("train", *folder_run(jpeg_tree), "data.max_unreadable=1"), 2)
    assert line.startswith("2 unreadable training images, and data.max_unreadable=1; noah check-data")
    assert ".jpg cannot be read as an image" in line
    assert line in Path("run/train.log").read_text()


def test_no_unreadable_validation_image_is_passed_over(noah: Noah, jpeg_tree: Path) -> None:
    (jpeg_tree / "val/bee/1.jpg").write_text("not an image")
    assert "val/bee/1.jpg cannot be read" in lines(noah("train", *folder_run(jpeg_tree), "data.max_unreadable=9"), 2)


def test_the_digits_have_no_unreadable_images(noah: Noah) -> None:
    assert "data.max_unreadable" in lines(noah("train", *RUN, "data.max_unreadable=1"), 2)


# --- memory


def test_too_little_gpu_memory_is_told_with_what_would_fit(noah: Noah, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    at(monkeypatch, 1, 0, fail)
    line = lines(noah("train", *RUN), 1)
    assert line == (
        "out of GPU memory with 32 images at a time in each process; trainer.accumulate_grad_batches=2 takes 16 at a "
        "time and keeps recipe.batch_size=32"
    )
    assert line in Path("run/train.log").read_text()
    assert read_checkpoint(LAST)["global_step"] == 3


def test_too_little_memory_is_told_with_what_would_fit(noah: Noah, monkeypatch: pytest.MonkeyPatch) -> None:
    at(monkeypatch, 0, 0, lambda: torch.empty(10**15))
    words = ["recipe.batch_size=30", "trainer.accumulate_grad_batches=2"]
    line = lines(noah("train", *RUN, *words), 1)
    assert line == (
        "out of memory with 15 images at a time in each process; trainer.accumulate_grad_batches=6 takes 5 at a time "
        "and keeps recipe.batch_size=30"
    )


def wait_or_fail() -> None:
    """One of two processes; the first one waits for the other, which has no memory left."""
    if rank() == 0:
        time.sleep(60)
    raise RunFailed("out of memory")


@pytest.mark.slow
def test_what_gives_out_in_one_of_several_processes_is_told_once(capfd: pytest.CaptureFixture[str]) -> None:
    begun = time.monotonic()
    with pytest.raises(RunFailed, match=r"^out of memory$"):
        run_in_processes(2, wait_or_fail)
    assert time.monotonic() - begun < 50
    assert "memory" not in "".join(capfd.readouterr())  # the command line says it


# --- the disk


@contextmanager
def room(size: int) -> Iterator[Callable[[], None]]:
    """Yields what makes the system refuse to write a file beyond ``size`` bytes, as a full disk does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    heard = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, heard)


def test_a_run_goes_on_where_checkpoints_find_no_room(noah: Noah, monkeypatch: pytest.MonkeyPatch) -> None:
    with room(20_000) as fill:
        at(monkeypatch, 1, 1, fill)
        answer = noah("train", *RUN)
    assert (answer.status, answer.err) == (0, "")
    assert "step-00000005.ckpt cannot be written" in answer.out
    assert "what was saved before is kept" in answer.out
    assert RunDir(Path("run")).results().epochs == 2
    assert read_checkpoint(LAST)["global_step"] == 4
    read_checkpoint(Path("run/checkpoints/best.ckpt"))
    left = [path.name for path in Path("run/checkpoints").iterdir()]
    assert not [name for name in left if name.endswith(".part") or name.startswith("step-00000005")]


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A disk of 20 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=20m", "none", folder], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("may not mount")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.slow
def test_a_disk_that_fills_up_is_told_and_the_run_is_finished_later(
    noah: Noah, mounted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ballast = mounted / "ballast"

    def fill() -> None:
        with suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    words = [word for word in RUN if "run.dir" not in word]
    with monkeypatch.context() as patch:
        at(patch, 1, 0, fill)
        answer = noah("train", *words, f"hydra.run.dir={mounted}/run")
    assert "No space left on device" in lines(answer, 1)
    assert "Traceback" not in answer.out
    assert read_checkpoint(mounted / "run/checkpoints/last.ckpt")["global_step"] == 3
    ballast.unlink()
    again = noah("resume", f"{mounted}/run")
    assert again.status == 0, again.err
    assert RunDir(mounted / "run").results().epochs == 2


def test_a_disk_that_is_read_only_is_one_line(noah: Noah, mounted: Path, broken_off: Path) -> None:
    shutil.copytree(broken_off, mounted / "run", symlinks=True)
    subprocess.run(["mount", "-o", "remount,ro", mounted], check=True)
    for words in (["resume", f"{mounted}/run"], ["train", *TINY, f"hydra.run.dir={mounted}/new"]):
        line = lines(noah(*words), 2)
        assert "cannot be written" in line
        assert "Read-only file system" in line


def test_a_full_disk_is_told_and_the_run_is_finished_later(noah: Noah, monkeypatch: pytest.MonkeyPatch) -> None:
    with room(0) as fill, monkeypatch.context() as patch:
        at(patch, 1, 0, fill)
        answer = noah("train", *RUN)
    line = lines(answer, 1)
    assert line.startswith("run/results.json cannot be written") or "results.json cannot be written" in line
    assert "free some space, then noah resume" in line
    for name in ("metrics.csv", "train.log"):
        assert answer.out.count(f"{name} cannot be written") == 1
    assert "Traceback" not in answer.out
    assert read_checkpoint(LAST)["global_step"] == 3
    with Path("run/metrics.csv").open() as file:
        assert len({row.count(",") for row in file}) == 1  # whole rows
    again = noah("resume", "run")
    assert again.status == 0, again.err
    assert RunDir(Path("run")).results().epochs == 2


def test_metrics_hold_whole_rows_whatever_fails(tmp_path: Path) -> None:
    rows, path = MetricsFile(tmp_path), tmp_path / "metrics.csv"
    rows.log_metrics({"loss": 1.5}, 0)
    rows.save()
    before = path.read_bytes()
    with room(len(before) + 3) as fill:
        fill()
        rows.log_metrics({"loss": 2.5}, 1)
        rows.save()
        assert path.read_bytes() == before  # no half a row
        rows.log_metrics({"top1": 50.0}, 1)
        rows.save()
        assert path.read_bytes() == before  # nor half a table with a new column
    rows.save()
    assert path.read_text().split() == ["loss,step,top1", "1.5,0,", "2.5,1,", ",1,50.0"]


def test_predictions_that_find_no_room_end_no_run(noah: Noah, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("numpy.savez_compressed", full)
    answer = noah("train", *RUN, "trainer.max_epochs=1")
    assert (answer.status, answer.err) == (0, "")
    assert "predictions.npz cannot be written ([Errno 28] No space left on device); the run continues" in answer.out


def test_files_are_put_in_their_place_when_they_are_whole(noah: Noah, monkeypatch: pytest.MonkeyPatch) -> None:
    placed = set()
    real = Path.replace

    def replace(self: Path, target: Path) -> Path:
        if self.name == f"{Path(target).name}.part":
            placed.add(Path(target).name)
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    assert noah("train", *RUN, "trainer.max_epochs=1").status == 0
    assert placed >= {"best.ckpt", "predictions.npz", "results.json", "metrics.csv", "step-00000003.ckpt"}


# --- damaged checkpoints


@pytest.fixture(scope="module")
def broken_off(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that ended behind its fifth step; it has those of the fourth and the fifth."""
    folder = tmp_path_factory.mktemp("broken_off")

    def fail() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        at(patch, 1, 2, fail)
        assert call_noah("train", *RUN).status == 1
    return folder / "run"


@pytest.fixture
def copied(noah: Noah, broken_off: Path) -> Path:
    shutil.copytree(broken_off, "run", symlinks=True)
    return Path("run")


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "says"),
    [(truncate, "cannot be read as a checkpoint"), (flip, "is damaged: the checksum of")],
    ids=["truncated", "a flipped bit"],
)
def test_a_damaged_checkpoint_is_passed_over(
    noah: Noah, copied: Path, damage: Callable[[Path], None], says: str
) -> None:
    damage(copied / "checkpoints/step-00000005.ckpt")
    answer = noah("resume", "run")
    assert answer.status == 0, answer.err
    assert "step-00000005.ckpt" in answer.out
    assert says in answer.out
    assert "trying the one before" in answer.out
    assert "resumed  after 4 steps" in answer.out
    assert RunDir(copied).results().epochs == 2


def test_a_last_checkpoint_that_leads_nowhere_is_no_hindrance(noah: Noah, copied: Path) -> None:
    (copied / "checkpoints/step-00000005.ckpt").unlink()
    assert not (copied / "checkpoints/last.ckpt").exists()
    answer = noah("resume", "run")
    assert answer.status == 0, answer.err
    assert "resumed  after 4 steps" in answer.out
    assert read_checkpoint(copied / "checkpoints/last.ckpt")["global_step"] == 6


def test_nothing_is_removed_where_all_checkpoints_are_damaged(noah: Noah, copied: Path) -> None:
    for path in copied.glob("checkpoints/step-*.ckpt"):
        truncate(path)
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file() and path.name != "train.log"}
    line = lines(noah("resume", "run"), 2)
    assert "no checkpoint in" in line
    assert "without them noah resume restarts from scratch" in line
    assert before == {path: path.read_bytes() for path in before}


# --- the run directory


def test_a_second_process_in_the_run_directory_is_refused(noah: Noah, copied: Path) -> None:
    before = sorted(copied.rglob("*"))
    with RunDir(copied.resolve()).locked():
        assert "is in use: another process is training there" in lines(noah("resume", "run"), 2)
        assert "run is in use: another process" in lines(noah("train", *RUN), 2)
    assert sorted(copied.rglob("*")) == before
    assert noah("resume", "run").status == 0


def test_a_run_directory_that_cannot_be_is_one_line(noah: Noah) -> None:
    Path("file").touch()
    line = lines(noah("train", *TINY, "hydra.run.dir=file/run"), 2)
    assert "file/run" in line
