"""A training run: what it leaves in its directory, and what it refuses."""

import csv
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from conftest import TINY, Answer, FinishedRun, call_noah
from noah_lightning.callbacks.progress import EpochReport
from noah_lightning.config.compose import compose_config
from noah_lightning.config.schema import MixingSettings, OptimizerSettings, ScheduleSettings
from noah_lightning.models.classifier import build_model
from noah_lightning.run_dir import RunDir
from noah_lightning.task.classification import BatchMixing
from noah_lightning.train import make_task, make_trainer

Noah = Callable[..., Answer]


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_run_directory_holds_the_whole_story(finished_run: FinishedRun) -> None:
    assert files_in(finished_run.path) == [
        "checkpoints",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "config.yaml",
        "metrics.csv",
        "predictions.npz",
        "results.json",
        "train.log",
    ]


def test_config_is_resolved_and_rebuilds_the_same_configuration(finished_run: FinishedRun) -> None:
    text = (finished_run.path / "config.yaml").read_text()
    assert "${" not in text
    assert yaml.safe_load(text)["head"]["head_num"] == 4
    assert RunDir(finished_run.path).config() == compose_config([*TINY, "head=noah"])


def test_log_file_holds_what_the_console_showed(finished_run: FinishedRun) -> None:
    logged = (finished_run.path / "train.log").read_text().splitlines()
    assert [re.sub(r"^\S+ \S+ ", "", line) for line in logged] == finished_run.answer.out.splitlines()


def test_console_tells_epochs_rate_and_time_left(finished_run: FinishedRun) -> None:
    out = finished_run.answer.out
    assert re.search(r"epoch 1/2  batch 2/3  \d+ images/s  0:0\d left in the epoch", out)
    assert re.search(r"epoch 2/2  train loss \d\.\d+ top-1 \S+ %  val top-1 .* of 50\).*0:00 left", out)
    parameters = sum(p.numel() for p in build_model(RunDir(finished_run.path).config()).parameters())
    assert f"head noah, {parameters:,} parameters" in out
    assert finished_run.answer.err == ""


def test_metrics_hold_each_epoch(finished_run: FinishedRun) -> None:
    rows = list(csv.DictReader((finished_run.path / "metrics.csv").open()))
    validations = [row for row in rows if row["val/top1"]]
    assert [row["epoch"] for row in validations] == ["0", "1"]
    assert all(float(row["val/images"]) == 50 for row in validations)
    assert len([row for row in rows if row["train/top1"]]) == 2
    assert len([row for row in rows if row["train/lr"]]) == 3  # 6 steps, every second one


def test_results_agree_with_log_and_metrics(finished_run: FinishedRun) -> None:
    results = RunDir(finished_run.path).results()
    rows = csv.DictReader((finished_run.path / "metrics.csv").open())
    accuracies = [float(row["val/top1"]) for row in rows if row["val/top1"]]
    assert results.top1 == pytest.approx(max(accuracies), abs=1e-4)
    assert results.best_epoch == 1 + accuracies.index(max(accuracies))
    assert (results.epochs, results.images) == (2, 50)
    assert f"best     epoch {results.best_epoch}  val top-1 {results.top1:.3f} %" in finished_run.answer.out
    last = torch.load(finished_run.path / "checkpoints" / "last.ckpt", weights_only=True)
    images, seconds = last["callbacks"]["EpochReport"]["startup"]
    assert images == 32
    assert results.images_per_second == pytest.approx((2 * 96 - images) / (results.train_seconds - seconds))


@pytest.mark.parametrize("name", ["best", "last"])
def test_checkpoints_are_plain_containers(finished_run: FinishedRun, name: str) -> None:
    checkpoint = torch.load(finished_run.path / "checkpoints" / f"{name}.ckpt", weights_only=True)
    assert all(key.startswith("model.") for key in checkpoint["state_dict"])
    build_model(RunDir(finished_run.path).config()).load_state_dict(
        {key.removeprefix("model."): value for key, value in checkpoint["state_dict"].items()}
    )


def test_best_checkpoint_is_of_the_best_epoch_and_last_of_the_last(finished_run: FinishedRun) -> None:
    epoch = {
        name: torch.load(finished_run.path / "checkpoints" / f"{name}.ckpt", weights_only=True)["epoch"] + 1
        for name in ("best", "last")
    }
    assert epoch == {"best": RunDir(finished_run.path).results().best_epoch, "last": 2}


def test_same_seed_same_weights_other_seed_others(finished_run: FinishedRun, noah: Noah) -> None:
    def weights(path: Path) -> torch.Tensor:
        return torch.load(path / "checkpoints/last.ckpt", weights_only=True)["state_dict"]["model.head.value.weight"]

    for run, seed in (("again", 0), ("other", 1)):
        assert noah("train", *TINY, "head=noah", f"seed={seed}", f"hydra.run.dir={run}").status == 0
    assert torch.equal(weights(Path("again")), weights(finished_run.path))
    assert not torch.equal(weights(Path("other")), weights(finished_run.path))


def test_a_run_is_never_overwritten(finished_run: FinishedRun) -> None:
    before = {path: path.read_bytes() for path in finished_run.path.rglob("*") if path.is_file()}
    answer = call_noah("train", *TINY, "head=gap", f"hydra.run.dir={finished_run.path}")
    assert answer.status == 2
    assert answer.err == f"noah: {finished_run.path} already contains a run; choose another hydra.run.dir=…\n"
    assert before == {path: path.read_bytes() for path in finished_run.path.rglob("*") if path.is_file()}


def test_default_run_directory_is_named_after_model_and_head(noah: Noah, tmp_path: Path) -> None:
    assert noah("train", *TINY, "head=gap", "trainer.max_epochs=1").status == 0
    [config] = tmp_path.glob("runs/*/*/config.yaml")
    assert re.fullmatch(r"\d\d-\d\d-\d\d_test_resnet_gap", config.parent.name)
    assert "+" not in files_in(tmp_path)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["headd.head_num=4"], ["headd.head_num", "head.head_num"]),
        (["head.head_num=3"], ["head_num=3", "512", "head_num=1, 2, 4, 8"]),
        (["model=resnet999"], ["resnet999", "resnet50", "model=timm"]),
        (["model=timm"], ["model.name"]),
        (["model=timm", "model.name=resnet999"], ["resnet999", "did you mean"]),
        ([], ["data.root=/path/to", "experiment=demo"]),
        (["data=imagefolder"], ["data.root=/path/to", "experiment=demo"]),
        (["data=imagenet", "data.root=/nowhere"], ["/nowhere", "does not exist", "train/<class>/"]),
        (["data=imagefolder", "data.root=/nowhere"], ["/nowhere", "does not exist"]),
        (["experiment=demo", "data.root=/x"], ["data.root"]),
        (["experiment=demo", "+foo=1"], ["'foo'"]),
        (["experiment=demo", "+recipe.warmup=1"], ["recipe.warmup"]),
        (["experiment=demo", "+model.args.foo=1"], ["foo", "resnet18"]),
        (["experiment=demo", "seed=abc"], ["seed='abc'", "an integer"]),
        (["experiment=demo", "trainer.max_epochs=0"], ["trainer.max_epochs=0"]),
        (
            ["experiment=demo", "trainer.check_val_every_n_epoch=4"],
            ["check_val_every_n_epoch=4", "max_epochs=3"],
        ),
        (["experiment=demo", "trainer.devices=0"], ["trainer.devices=0", "at least 1"]),
        (["experiment=demo", "trainer.devices=null"], ["trainer.devices=null", "at least 1"]),
        (["experiment=demo", "trainer=ddp", "trainer.devices=3"], ["batch_size=64", "3 processes", "63 or 66"]),
        (["experiment=demo", "trainer=ddp", "trainer.devices=2", "trainer.num_nodes=2"], ["num_nodes", "torchrun"]),
        (["experiment=demo", "trainer.num_nodes=2"], ["num_nodes", "torchrun"]),
        (["experiment=demo", "trainer.accelerator=cpu", "trainer.sync_batchnorm=true"], ["sync_batchnorm", "GPUs"]),
        (["experiment=demo", "trainer.log_every_n_steps=0"], ["log_every_n_steps=0", "at least 1"]),
        (["experiment=demo", "trainer.limit_val_batches=0"], ["limit_val_batches=0", "null"]),
        (["experiment=demo", "trainer.limit_train_batches=0"], ["limit_train_batches=0"]),
        (["experiment=demo", "trainer.compile=maybe"], ["trainer.compile='maybe'", "true or false"]),
        (["experiment=demo", "trainer.channels_last=1"], ["trainer.channels_last=1", "true or false"]),
        (["experiment=demo", "trainer.precision=8"], ["trainer", "recision"]),
        (["experiment=demo", "recipe.optimizer.name=sdg"], ["sdg", "sgd"]),
        (["experiment=demo", "recipe.optimizer.lr_batch=0"], ["recipe.optimizer.lr_batch=0", "at least 1"]),
        (["experiment=demo", "recipe.schedule.lag=-1"], ["recipe.schedule.lag=-1", "at least 0"]),
        (["experiment=demo", "recipe.mixing.switch=2"], ["recipe.mixing.switch=2", "from 0 to 1"]),
        (["experiment=demo", "recipe.ema=1"], ["recipe.ema=1", "above 0 and below 1"]),
        (["experiment=demo", "recipe.gradient_clip=0"], ["recipe.gradient_clip=0", "above 0"]),
        (["experiment=demo", "recipe.gradient_clip=no"], ["recipe.gradient_clip='no'", "above 0"]),
        (["experiment=demo", "trainer.gradient_clip_val=-1"], ["trainer.gradient_clip_val=-1", "above 0"]),
        (
            ["experiment=demo", "trainer.accumulate_grad_batches=0"],
            ["trainer.accumulate_grad_batches=0", "at least 1"],
        ),
        (["experiment=demo", "recipe.batch_size=none"], ["recipe.batch_size='none'"]),
        (["experiment=demo", "logger.name=tensorbord"], ["tensorbord", "tensorboard"]),
        (["head.head_num"], ["head.head_num"]),
        (["experiment=demo", "head=null"], ["head=null", "gap, gem"]),
        (["experiment=demo", "data=3"], ["data=3", "digits"]),
        (["experiment=demo", "recipe.schedule=null"], ["recipe.schedule=null", "group"]),
        (["experiment=demo", "model.args=3"], ["model.args=3", "group"]),
        (["+foo=1", "model=resnet999"], ["'resnet999'"]),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    noah: Noah, tmp_path: Path, overrides: list[str], says: list[str]
) -> None:
    answer = noah("train", *overrides)
    assert answer.status == 2
    assert answer.err.count("\n") == 1
    assert answer.err.startswith("noah: ")
    assert "Traceback" not in answer.err
    for part in says:
        assert part in answer.err
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("precision", ["16", "16-mixed"])
@pytest.mark.parametrize("accelerator", ["auto", "cpu"])
def test_16_bits_on_a_cpu_are_refused_before_lightning_takes_others(
    noah: Noah, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder, precision: str, accelerator: str
) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    answer = noah("train", *TINY, f"trainer.accelerator={accelerator}", f"trainer.precision={precision}")
    line = f"noah: trainer.precision={precision} works on GPUs only; use bf16-mixed or 32-true\n"
    assert (answer.status, answer.err, answer.out) == (2, line, "")
    assert not [warning for warning in recwarn if "precision" in str(warning.message)]
    assert not Path("runs").exists()


def test_the_task_is_what_the_recipe_says() -> None:
    config = compose_config(["recipe=deit", "data.num_classes=12"])
    task = make_task(config, nn.Linear(2, 2), batch=256)
    assert task.optimizer_settings == OptimizerSettings(
        name="adamw",
        lr=2.5e-4,
        weight_decay=0.05,
        decay="matrices",
        options={"eps": 1e-8, "betas": [0.9, 0.999]},
        lr_batch=256,
    )
    assert task.schedule == ScheduleSettings(
        name="cosine", per="epoch", warmup_epochs=5, warmup_lr=1e-6, final_lr=1e-5, lag=1
    )
    assert task.objective.loss.keywords == {"label_smoothing": 0.0}  # mixing smooths its own targets
    plain = compose_config(["recipe=deit", "data.num_classes=12", "recipe.mixing.mixup=0", "recipe.mixing.cutmix=0"])
    smoothed = make_task(plain, nn.Linear(2, 2), batch=256)
    assert smoothed.objective.loss.keywords == {"label_smoothing": 0.1}
    assert task.ema.decay == 0.99996
    expected = BatchMixing(MixingSettings(mixup=0.8, cutmix=1.0, switch=0.5), num_classes=12, label_smoothing=0.1)
    assert vars(task.mixing) == vars(expected)


def test_the_rate_is_for_all_images_of_an_optimizer_step(noah: Noah) -> None:
    scaled = ["recipe.optimizer.lr_batch=256", "recipe.schedule.name=constant", "recipe.schedule.warmup_epochs=0"]
    accumulated = ["trainer.accumulate_grad_batches=2", "trainer.max_epochs=1", "hydra.run.dir=run"]
    answer = noah("train", *TINY, "head=gap", *scaled, *accumulated)
    assert answer.status == 0, answer.err
    assert "batch 16\nrate     0.003 × 32/256 = 0.000375, adamw\n" in answer.out
    rows = csv.DictReader(Path("run/metrics.csv").read_text().splitlines())
    assert [float(row["train/lr"]) for row in rows if row["train/lr"]] == pytest.approx([0.000375], rel=1e-6)


@pytest.mark.parametrize(("precision", "dtype"), [("64-true", torch.float64), ("bf16-true", torch.bfloat16)])
def test_weights_and_images_share_a_true_precision(noah: Noah, precision: str, dtype: torch.dtype) -> None:
    words = [*TINY, "head=noah", "trainer.max_epochs=1", f"trainer.precision={precision}", "trainer.accelerator=cpu"]
    answer = noah("train", *words, "hydra.run.dir=run")
    assert answer.status == 0, answer.err
    weights = torch.load("run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert weights["model.head.value.weight"].dtype == dtype


def test_a_rate_for_every_batch_is_announced_as_it_is(finished_run: FinishedRun) -> None:
    assert "\nrate     0.003, adamw\n" in finished_run.answer.out


@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.. is deprecated")
@pytest.mark.filterwarnings("ignore:You defined a .validation_step. but have no")
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(("clip", "moved"), [("0.01", 0.01), ("0.5", 0.5), ("null", None)])
def test_the_gradient_is_clipped_to_the_recipes_norm(
    tmp_path: Path, clip: str, moved: float | None, accumulate: int
) -> None:
    """One step of plain SGD at rate 1 moves the weights by the gradient."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 10))
    images, labels = 10 * torch.randn(8, 3, 2, 2), torch.randint(10, (8,))
    before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    nn.functional.cross_entropy(model(images), labels).backward()
    gradient = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    model.zero_grad()
    assert gradient.norm() > 1

    recipe = [f"recipe.gradient_clip={clip}", "recipe.optimizer.name=sgd", "recipe.optimizer.lr=1.0"]
    schedule = ["recipe.schedule.name=constant", "recipe.schedule.warmup_epochs=0", "recipe.optimizer.weight_decay=0"]
    trainer = ["trainer.max_epochs=1", f"trainer.accumulate_grad_batches={accumulate}", "trainer.accelerator=cpu"]
    config = compose_config([*TINY, *recipe, *schedule, *trainer])
    data = DataLoader(TensorDataset(images, labels), 8 // accumulate)
    quiet = {"logger": False, "enable_checkpointing": False}
    make_trainer(config, tmp_path, **quiet).fit(make_task(config, model, batch=8), data)
    step = before - nn.utils.parameters_to_vector(model.parameters()).detach()
    expected = gradient if moved is None else gradient * moved / gradient.norm()
    torch.testing.assert_close(step, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.filterwarnings("ignore:You defined a .validation_step. but have no")
def test_float16_gradients_are_clipped_once_they_are_unscaled(tmp_path: Path) -> None:
    """A fused optimiser would unscale by itself, behind the clipping. One step of SGD moves by the gradient."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 10))
    before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    recipe = ["recipe.gradient_clip=0.01", "recipe.optimizer.name=sgd", "recipe.optimizer.lr=1.0"]
    schedule = ["recipe.schedule.name=constant", "recipe.schedule.warmup_epochs=0", "recipe.optimizer.weight_decay=0"]
    words = ["trainer.max_epochs=1", "trainer.precision=16-mixed", "trainer.accelerator=cpu"]
    config = compose_config([*TINY, *recipe, *schedule, *words])
    trainer = make_trainer(config, tmp_path, logger=False, enable_checkpointing=False)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    trainer.strategy._precision_plugin = MixedPrecision("16-mixed", "cpu", scaler)  # on CPUs Lightning takes bf16
    data = DataLoader(TensorDataset(torch.randn(8, 3, 2, 2), torch.randint(10, (8,))), 8)
    trainer.fit(make_task(config, model, batch=8), data)
    step = before - nn.utils.parameters_to_vector(model.parameters()).detach()
    assert float(step.norm()) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize(
    ("options", "fused"), [([], True), (["+recipe.optimizer.options.fused=false"], False), (["foreach"], None)]
)
def test_the_optimizer_is_fused_unless_its_options_say_otherwise(
    optimizer: str, options: list[str], fused: bool | None
) -> None:
    words = ["+recipe.optimizer.options.foreach=true" if word == "foreach" else word for word in options]
    config = compose_config([*TINY, f"recipe.optimizer.name={optimizer}", *words])
    (group, *_) = make_task(config, nn.Linear(2, 2), batch=32).configure_optimizers().param_groups
    assert (group["fused"], group["foreach"]) == (fused, True if fused is None else None)


# --- compiled


def compile_with(monkeypatch: pytest.MonkeyPatch, backend: Callable[..., object]) -> None:
    """A backend that costs no minute instead of torch's own."""
    compile_in_place = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda module: compile_in_place(module, backend=backend))


def test_a_compiled_run_is_the_run(finished_run: FinishedRun, noah: Noah, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs: list[torch.fx.GraphModule] = []

    def as_it_is(graph: torch.fx.GraphModule, inputs: object) -> object:
        graphs.append(graph)
        return graph

    compile_with(monkeypatch, as_it_is)
    answer = noah("train", *TINY, "head=noah", "trainer.compile=true", "hydra.run.dir=run")
    assert answer.status == 0, answer.err
    trained = len(graphs)
    assert trained > 0

    last, expected = (
        torch.load(path / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for path in (Path("run"), finished_run.path)
    )
    assert last.keys() == expected.keys()
    for name, weights in expected.items():
        torch.testing.assert_close(last[name], weights, msg=name)

    evaluated = noah("evaluate", "run")
    assert evaluated.status == 0, evaluated.err
    assert len(graphs) > trained, "what was compiled in training is compiled in evaluation"
    now = len(graphs)
    without = noah("evaluate", "run", "trainer.compile=false")
    assert len(graphs) == now
    for answer_ in (evaluated, without):
        assert answer_.out.split("val ")[1].strip() == answer.out.splitlines()[-1].split("val ")[1].strip()


def test_what_cannot_be_compiled_is_one_line(noah: Noah, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(graph: object, inputs: object) -> object:
        raise RuntimeError("no compiler\nfound")

    compile_with(monkeypatch, broken)
    answer = noah("train", *TINY, "head=gap", "trainer.compile=true", "hydra.run.dir=run")
    assert answer.status == 2
    assert answer.err.count("\n") == 1
    assert answer.err.startswith("noah: trainer.compile=true: ")
    assert answer.err.endswith("no compiler found; trainer.compile=false trains without\n")
    assert "no compiler found" in Path("run/train.log").read_text()


@pytest.mark.slow
def test_torchs_own_compiler_trains_and_evaluates(noah: Noah) -> None:
    words = ["head=noah", "trainer.compile=true", "trainer.channels_last=true", "recipe.ema=0.9"]
    trained = noah("train", *TINY, *words, "trainer.accelerator=cpu", "hydra.run.dir=run")
    assert trained.status == 0, trained.err
    best = next(line for line in trained.out.splitlines() if line.startswith("best   "))
    for ema in ([], ["--ema"]):
        evaluated = noah("evaluate", "run", *ema)
        assert evaluated.status == 0, evaluated.err
        if not ema:
            assert evaluated.out.split("val ")[1].strip() == best.split("val ")[1].strip()


@pytest.mark.slow
def test_without_a_compiler_there_is_one_line(noah: Noah, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._inductor.config as inductor

    monkeypatch.setattr(inductor.cpp, "cxx", ("/nowhere/g++",))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))  # nothing compiled earlier is found
    answer = noah("train", *TINY, "head=gap", "trainer.compile=true", "trainer.accelerator=cpu")
    assert answer.status == 2
    assert answer.err.count("\n") == 1
    assert "compiler" in answer.err.lower()
    assert "TORCHDYNAMO" not in answer.err


# --- presets


def test_the_gpu_preset_is_mixed_precision_channels_last_and_compiled() -> None:
    trainer = compose_config(["experiment=demo", "trainer=gpu"]).trainer
    assert (trainer.accelerator, trainer.precision) == ("gpu", "bf16-mixed")
    assert (trainer.channels_last, trainer.compile, trainer.benchmark) == (True, True, True)


def test_the_gpu_preset_on_several_devices_is_ddp(tmp_path: Path) -> None:
    config = compose_config(["experiment=demo", "trainer=gpu", "trainer.devices=2", "trainer.accelerator=cpu"])
    trainer = make_trainer(config, tmp_path, logger=False)
    assert isinstance(trainer.strategy, DDPStrategy)
    assert trainer.world_size == 2
    assert config.data.batch_size == 32  # of 64


def test_the_gpu_preset_without_a_gpu_is_refused_in_one_line(noah: Noah, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    answer = noah("train", *TINY, "trainer=gpu")
    assert (answer.status, answer.err.count("\n")) == (2, 1)
    assert "gpu" in answer.err.lower()


def test_images_in_folders_train(noah: Noah, jpeg_tree: Path) -> None:
    answer = noah(
        "train",
        "model=timm",
        "model.name=test_resnet",
        "head=noah",
        "data=imagefolder",
        f"data.root={jpeg_tree}",
        "data.image_size=32",
        "data.num_workers=1",
        "recipe.batch_size=4",
        "recipe.optimizer.lr=0.01",
        "trainer.max_epochs=1",
    )
    assert answer.status == 0, answer.err
    assert "imagefolder, 2 classes, batch 4" in answer.out
    assert "of 6)" in answer.out


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda root: (root / "train/ant/3.jpg").write_text("not an image"), ["train/ant/3.jpg", "cannot be read"]),
        (lambda root: (root / "train/cat").mkdir() or (root / "val/cat").mkdir(), ["classes without images", "cat"]),
    ],
    ids=["text named .jpg", "empty class"],
)
def test_damaged_trees_are_named_in_one_line(
    noah: Noah, jpeg_tree: Path, damage: Callable[[Path], object], says: list[str]
) -> None:
    damage(jpeg_tree)
    tree = ["data=imagefolder", f"data.root={jpeg_tree}", "data.image_size=32", "data.num_workers=1"]
    answer = noah("train", "model=timm", "model.name=test_resnet", *tree, "recipe.batch_size=4")
    assert answer.status == 2
    assert answer.err.count("\n") == 1
    for part in says:
        assert part in answer.err


def test_an_error_under_way_is_in_the_log_of_the_run(noah: Noah, jpeg_tree: Path) -> None:
    (jpeg_tree / "train/ant/3.jpg").write_text("not an image")
    tree = ["data=imagefolder", f"data.root={jpeg_tree}", "data.image_size=32", "data.num_workers=0"]
    noah("train", "model=timm", "model.name=test_resnet", *tree, "recipe.batch_size=4", "hydra.run.dir=run")
    assert "error: " in Path("run/train.log").read_text()
    assert not Path("run/results.json").exists()


def test_an_interrupted_run_ends_quietly_and_keeps_what_it_has(noah: Noah, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the second epoch: the first one's checkpoint stays, and nothing says the run had finished."""

    timed = EpochReport.on_train_batch_end

    def interrupt(self: EpochReport, *arguments: object) -> None:
        timed(self, *arguments)
        if Path("run/checkpoints/last.ckpt").exists():
            raise KeyboardInterrupt

    monkeypatch.setattr(EpochReport, "on_train_batch_end", interrupt)
    answer = noah("train", *TINY, "head=gap", "hydra.run.dir=run")
    assert answer.status == 130
    assert answer.err == ""
    assert "interrupted in epoch 2" in answer.out
    assert Path("run/checkpoints/last.ckpt").exists()
    assert not Path("run/results.json").exists()


@pytest.mark.parametrize("key", ["drop_path", "block_dropout"])
@pytest.mark.parametrize("value", ["1.5", "-0.1", "much", "true"])
def test_rates_out_of_range_are_refused(noah: Noah, key: str, value: str) -> None:
    answer = noah("train", *TINY, f"recipe.{key}={value}")
    assert answer.status == 2
    assert f"recipe.{key}=" in answer.err
    assert "must be a number of at least 0 and below 1" in answer.err


def test_what_the_model_lacks_is_refused(noah: Noah) -> None:
    answer = noah("train", *TINY, "recipe.block_dropout=0.1")
    assert answer.status == 2
    assert "proj_drop_rate" in answer.err


def test_equal_dropout_is_true_or_false_whatever_the_head(noah: Noah) -> None:
    answer = noah("train", *TINY, "head=noah", "recipe.equal_dropout=maybe")
    assert (answer.status, answer.err) == (2, "noah: recipe.equal_dropout='maybe' must be true or false\n")
