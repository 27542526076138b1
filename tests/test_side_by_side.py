"""hydra/launcher=side_by_side: many heads on the stored features of one frozen backbone."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from commands import Command
from conftest import Answer
from noah_lightning.data import create_data
from noah_lightning.models.feature_store import Features, FeatureStore, fingerprint
from noah_lightning.models.weights import read_weights
from noah_lightning.run_dir import CHECKPOINTS, RunDir
from noah_lightning.sweep import probes
from noah_lightning.sweep.nearest import nearest_neighbors

Noah = Callable[..., Answer]
DATA = ("data=digits", "data.train_images=96", "data.val_images=40", "data.image_size=24", "data.num_fragments=0")
LAB = ("experiment=head_lab", *DATA, "model=resnet18_quarter", "recipe.epochs=2", "recipe.batch_size=32")
NO_CHOICE = "recipe.optimizer.lr_choices=[]"


@pytest.fixture
def backbone(tmp_path: Path) -> str:
    """Weights of a backbone, which is not the one that a seed would draw."""
    from noah_lightning.models.classifier import create_model

    torch.manual_seed(123)
    model = create_model("resnet18", num_classes=10, model_args={"channels": [16, 32, 64, 128], "output_stride": 8})
    path = tmp_path / "backbone.pt"
    torch.save(model.state_dict(), path)
    return f"model.weights={path}"


def lab(noah: Noah, *words: str) -> Answer:
    return noah("train", "-m", *LAB, "sweep.dir=s", *words)


def weights(run: Path, name: str = "last") -> dict[str, Tensor]:
    return read_weights(run / CHECKPOINTS / f"{name}.ckpt").state


@pytest.mark.parametrize("head", ["gap", "avg", "noah"])
def test_a_head_is_trained_as_in_a_run_of_its_own(head: str, noah: Noah, backbone: str) -> None:
    words = ("recipe.optimizer.lr=0.5", "recipe.optimizer.weight_decay=0.01", "recipe.label_smoothing=0.1")
    dropout = () if head == "gap" else ("head.dropout=0.2",)
    answer = lab(noah, f"head={head}", "seed=4,5", backbone, NO_CHOICE, *words, *dropout)
    assert answer.status == 0, answer.err
    alone = ("experiment=head_lab", *LAB[1:], f"head={head}", "seed=5", backbone, NO_CHOICE, *words, *dropout)
    assert noah("train", *alone, "hydra.run.dir=alone").status == 0
    side, own = RunDir(Path("s/1")), RunDir(Path("alone"))
    for name in ("best", "last"):
        expected = weights(own.path, name)
        found = weights(side.path, name)
        assert found.keys() == expected.keys()
        for key, tensor in expected.items():
            torch.testing.assert_close(found[key], tensor, rtol=1e-5, atol=1e-5)
    for column in ("train/loss", "train/top1", "val/loss", "val/top1", "val/images"):
        np.testing.assert_allclose(
            list(side.curve(column).values()), list(own.curve(column).values()), rtol=1e-5, err_msg=column
        )
    np.testing.assert_array_equal(side.predictions().guesses, own.predictions().guesses)
    assert side.results().parameters == own.results().parameters
    assert side.results().best_epoch == own.results().best_epoch
    different = [key for key in side.settings.keys() | own.settings.keys() if side.settings[key] != own.settings[key]]
    assert not different


def test_runs_are_evaluated_and_compared_like_any(noah: Noah, backbone: str) -> None:
    assert lab(noah, "head=gap,avg,noah,cls_mean", "seed=0,1", backbone, NO_CHOICE).status == 0
    for number in (0, 3, 5):
        evaluated = noah("evaluate", f"s/{number}")
        results = RunDir(Path(f"s/{number}")).results()
        assert f"({results.correct:,} of {results.images:,})" in evaluated.out
    table = noah("compare", "s").out
    for head in ("gap", "avg", "noah"):
        assert head in table
    assert not Path("s/6").exists()  # a ResNet has no class token
    sizes = {os.stat(Path(f"s/{number}/checkpoints/backbone.ckpt")).st_ino for number in (2, 3, 4, 5)}
    assert len(sizes) == 1  # a link, not a copy


def test_the_learning_rate_is_chosen_on_held_out_training_images(noah: Noah, backbone: str) -> None:
    answer = lab(
        noah,
        "head=avg,max",
        "seed=0,1",
        backbone,
        "recipe.optimizer.lr_choices=[1e-9,0.1]",
        "data.train_images=400",
        "recipe.epochs=5",
    )
    assert answer.status == 0, answer.err
    rates = [RunDir(Path(f"s/{number}")).settings["recipe.optimizer.lr"] for number in range(4)]
    assert rates == [0.1] * 4
    assert answer.out.count("rate     0.1 for head=") == 2


@pytest.mark.slow
def test_heads_in_memory_are_limited_while_learning_rates_are_chosen(noah: Noah, backbone: str) -> None:
    """Six heads at a time: the rates of two of their three settings, those of the third, six runs; then the rest."""
    words = ("head=avg,max,gem,noah", "seed=0,1", backbone, "recipe.optimizer.lr_choices=[0.1,0.3,1.0]")
    answer = lab(noah, *words, "sweep.jobs=6")
    assert answer.status == 0, answer.err
    lines = answer.out.splitlines()
    last = [line.partition("  epoch 2/2")[0] for line in lines if "  epoch 2/2" in line]
    searches = [f"learning rates of {settings}" for settings in ("2 settings", "1 setting")]
    assert last == [*searches, "6 heads", searches[1], "2 heads"]
    unlimited = noah("train", "-m", *LAB, "sweep.dir=t", *words)
    assert unlimited.status == 0, unlimited.err
    for number in range(8):
        assert RunDir(Path(f"s/{number}")).settings == RunDir(Path(f"t/{number}")).settings
        for key, tensor in weights(Path(f"s/{number}")).items():
            torch.testing.assert_close(weights(Path(f"t/{number}"))[key], tensor, rtol=0, atol=0)


def test_progress_is_shown_between_the_heads_of_one_batch(
    noah: Noah, backbone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes, "EVERY", 0.0)
    answer = lab(noah, "head=avg,noah", "seed=0", backbone, NO_CHOICE)
    for line in ("1 model built", "2 heads  epoch 1  batch 1/3", "2 heads  epoch 1  validation"):
        assert sum(each.startswith(line) for each in answer.out.splitlines()) >= (1 if "built" in line else 2), line


def test_the_log_of_a_run_has_no_best_epoch_before_the_first_validation(noah: Noah, backbone: str) -> None:
    words = ("head=avg", "seed=0", backbone, NO_CHOICE, "trainer.check_val_every_n_epoch=2")
    assert lab(noah, *words).status == 0
    first, second = (line for line in Path("s/0/train.log").read_text().splitlines() if "train loss" in line)
    assert "best" not in first
    assert "best epoch 2" in second


def test_how_long_features_took_is_recorded(noah: Noah, backbone: str) -> None:
    assert lab(noah, "head=avg", "seed=0", backbone, NO_CHOICE).status == 0
    [file] = Path("s/.side_by_side").glob("*-references.json")
    facts = json.loads(file.read_text())
    assert facts["features"]["images"] == 136
    assert facts["features"]["bytes"] == 136 * 128 * 9 * 4
    assert facts["features"]["seconds"] > 0
    assert facts["knn"]["images"] == 40


def test_features_are_stored_once_for_all_that_read_the_same(noah: Noah, backbone: str) -> None:
    first = lab(noah, "head=avg", "seed=0", backbone, NO_CHOICE)
    assert "features 0.00 GB will be written in runs/.features" in first.out
    again = noah("train", "-m", *LAB, "sweep.dir=t", "head=max", "seed=1", backbone, NO_CHOICE)
    assert "features read from runs/.features/" in again.out
    other = noah("train", "-m", *LAB, "sweep.dir=u", "head=max", "seed=1", backbone, NO_CHOICE, "data.seed=1")
    assert "will be written" in other.out


def test_features_that_do_not_fit_are_computed_for_every_batch(noah: Noah, backbone: str) -> None:
    assert lab(noah, "head=avg,noah", "seed=0", backbone, NO_CHOICE).status == 0
    none = noah(
        "train",
        "-m",
        *LAB,
        "sweep.dir=t",
        "head=avg,noah",
        "seed=0",
        backbone,
        NO_CHOICE,
        "hydra.launcher.store_gb=0",
        "hydra.launcher.store=elsewhere",
    )
    assert "more than the limit of 0 GB (hydra.launcher.store_gb): computed again for every batch" in none.out
    assert not Path("elsewhere").exists()
    for number in (0, 1):
        for key, tensor in weights(Path(f"s/{number}")).items():
            torch.testing.assert_close(weights(Path(f"t/{number}"))[key], tensor, rtol=1e-5, atol=1e-5)


def test_a_killed_sweep_resumes_with_the_same_result(noah: Noah, backbone: str, tmp_path: Path, forked: None) -> None:
    words = (
        "head=avg,noah",
        "seed=0,1",
        backbone,
        "recipe.optimizer.lr_choices=[0.1,1.0]",
        "recipe.epochs=16",
        "checkpoint.every_minutes=1e-9",
    )
    command = ("train", "-m", *LAB, *words)
    assert noah(*command, "sweep.dir=whole").status == 0
    killed = Command(*command, "sweep.dir=s", cwd=tmp_path, out=tmp_path / "out")
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("s/.side_by_side/*.state")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    assert killed.poll() is None, "finished before it was killed"
    killed.send_signal(signal.SIGKILL)
    killed.wait(30)
    assert not (tmp_path / "s/0/results.json").exists()
    resumed = noah(*command, "sweep.dir=s", "sweep.resume=true")
    assert resumed.status == 0, resumed.err
    assert "resumed" in (tmp_path / "s/0/train.log").read_text()
    for number in range(4):
        one, other = RunDir(Path(f"whole/{number}")), RunDir(Path(f"s/{number}"))
        assert one.results().model_dump(exclude={"train_seconds", "images_per_second"}) == other.results().model_dump(
            exclude={"train_seconds", "images_per_second"}
        )
        assert (one.path / "metrics.csv").read_text() == (other.path / "metrics.csv").read_text()
        for key, tensor in weights(one.path).items():
            torch.testing.assert_close(weights(other.path)[key], tensor, rtol=0, atol=0)


def test_sigterm_saves_and_says_how_to_resume(noah: Noah, backbone: str, tmp_path: Path, forked: None) -> None:
    words = ("head=avg", "seed=0", backbone, NO_CHOICE, "recipe.epochs=100000")
    stopped = Command("train", "-m", *LAB, *words, "sweep.dir=s", cwd=tmp_path, out=tmp_path / "out")
    deadline = time.monotonic() + 120
    out = tmp_path / "out"
    while not (out.exists() and "epoch 3/" in out.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    stopped.send_signal(signal.SIGTERM)
    assert stopped.wait(60) == 143
    assert "the same command with sweep.resume=true resumes it" in (tmp_path / "out").read_text()
    assert list(tmp_path.glob("s/.side_by_side/*.state"))


def test_random_features_are_warned_of(noah: Noah, backbone: str) -> None:
    warning = "the frozen backbone has random weights; set model.pretrained=true or model.weights=FILE"
    assert warning not in lab(noah, "head=avg", "seed=0", backbone, NO_CHOICE).out
    random = noah("train", "-m", *LAB, "sweep.dir=t", "head=avg", "seed=0", NO_CHOICE)
    assert random.out.count(warning) == 1
    alone = noah("train", "experiment=head_lab", *LAB[1:], "head=avg", NO_CHOICE, "hydra.run.dir=alone")
    assert alone.out.count(warning) == 1


def test_a_run_of_one_step_has_a_speed(noah: Noah, backbone: str) -> None:
    words = ("data.train_images=32", "recipe.epochs=1", "head=avg", "seed=0", backbone, NO_CHOICE)
    assert lab(noah, *words).status == 0
    assert RunDir(Path("s/0")).results().images_per_second > 0


def test_a_logger_that_fails_fails_its_job_alone(noah: Noah, backbone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "sometimes")
    answer = lab(noah, "head=avg", "logger=csv,wandb", "seed=0", backbone, NO_CHOICE)
    assert answer.status == 1
    assert "WANDB_MODE='sometimes' must be online, offline or disabled" in answer.err
    assert RunDir(Path("s/0")).outcome is not None
    assert RunDir(Path("s/1")).outcome is None


def test_a_head_that_diverges_does_not_end_the_others(noah: Noah, backbone: str) -> None:
    answer = lab(noah, "head=avg", "recipe.optimizer.lr=0.1,1e40", backbone, NO_CHOICE, "seed=0")
    assert answer.status == 1
    assert "the loss is not finite; try a smaller recipe.optimizer.lr" in answer.err
    assert RunDir(Path("s/0")).outcome is not None
    assert RunDir(Path("s/1")).outcome is None


def test_a_head_without_a_possible_learning_rate_does_not_end_the_others(noah: Noah, backbone: str) -> None:
    answer = lab(noah, "head=avg", "recipe.optimizer.lr_choices=[1e40],[0.1]", backbone, "seed=0,1")
    assert answer.status == 1
    assert "the loss is not finite with any of recipe.optimizer.lr_choices" in answer.err
    assert [Path(f"s/{number}/results.json").exists() for number in range(4)] == [False, True, False, True]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("model.freeze=false", "hydra/launcher=side_by_side needs model.freeze=true, not false"),
        ("recipe.ema=0.9", "hydra/launcher=side_by_side needs recipe.ema=null, not 0.9"),
        ("recipe.mixing.mixup=0.2", "hydra/launcher=side_by_side needs recipe.mixing.mixup=0, not 0.2"),
        (
            "trainer.accumulate_grad_batches=2",
            "side_by_side needs trainer.accumulate_grad_batches=1, not 2",
        ),
    ],
)
def test_settings_that_need_a_process_of_their_own_are_one_line(word: str, message: str, noah: Noah) -> None:
    answer = lab(noah, "head=avg", "seed=0", NO_CHOICE, word)
    assert answer.status == 1
    assert message in answer.err


def test_the_store_removes_what_was_used_last_of_all(tmp_path: Path) -> None:
    data = create_data("digits", train_images=12, val_images=10, image_size=32, num_workers=0)
    data.setup("fit")

    def extract(images: Tensor) -> tuple[Tensor, ...]:
        return (images.float().mean(dim=(1, 2, 3)),)

    assert FeatureStore(tmp_path / "store", limit=10**6).get("a", data, extract)
    size = sum(file.stat().st_size for file in (tmp_path / "store" / "a").iterdir())
    store = FeatureStore(tmp_path / "store", limit=2 * size + 50)  # two sets of features, but not a third
    for time_used, key in enumerate(("a", "b")):
        features = store.get(key, data, extract)
        assert features is not None
        os.utime(tmp_path / "store" / key, (time_used, time_used))
    assert store.get("c", data, extract) is not None
    assert {path.name for path in (tmp_path / "store").iterdir()} == {"b", "c"}
    (inputs,), labels = features["train"].batch([3, 1])
    assert data.train_dataset is not None
    images = [data.train_dataset[number] for number in (3, 1)]
    torch.testing.assert_close(inputs, torch.stack([image.float().mean() for image, _ in images]))
    assert labels.tolist() == [label for _, label in images]
    (subset,), _ = features["train"].subset(np.array([5, 3])).batch([1])
    torch.testing.assert_close(subset, inputs[:1])


def test_what_other_processes_write_is_left_alone(tmp_path: Path) -> None:
    """Neither removed to make room nor overwritten when both compute the same features."""
    data = create_data("digits", train_images=12, val_images=10, image_size=32, num_workers=0)
    data.setup("fit")
    store = FeatureStore(tmp_path / "store", limit=200)
    other = tmp_path / "store" / ".other.123"
    other.mkdir(parents=True)
    (other / "train-0.npy").write_bytes(bytes(300))

    def extract(images: Tensor) -> tuple[Tensor, ...]:
        if len(images) > 1:  # not the one whose size is measured
            (tmp_path / "store" / "a").mkdir(exist_ok=True)
            (tmp_path / "store" / "a" / "theirs").touch()
        return (images.float().mean(dim=(1, 2, 3)),)

    with pytest.raises(FileNotFoundError):  # the other process's folder has no labels in this test
        store.get("a", data, extract)
    assert [path.name for path in (tmp_path / "store" / "a").iterdir()] == ["theirs"]
    assert other.is_dir()


def test_another_image_is_another_fingerprint(jpeg_tree: Path) -> None:
    def of_tree() -> str:
        data = create_data("imagefolder", root=str(jpeg_tree), num_workers=0)
        data.setup("fit")
        return fingerprint(data)

    before = of_tree()
    assert of_tree() == before
    file = next((jpeg_tree / "train").rglob("*.jp*g"))
    os.utime(file, (1, 1))
    assert of_tree() != before


def test_nearest_neighbors_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 300)
    maps = rng.normal(size=(300, 16, 5)).astype(np.float32) + 0.3 * np.eye(4, 16)[labels][:, :, None].astype(
        np.float32
    )
    train, val = (Features((maps[part],), labels[part]) for part in (slice(200), slice(200, None)))
    oracle = KNeighborsClassifier(20, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
    oracle.fit(maps[:200].mean(axis=2), labels[:200])
    expected = int((oracle.predict(maps[200:].mean(axis=2)) == labels[200:]).sum())
    assert nearest_neighbors(train, val, torch.device("cpu")) == expected
