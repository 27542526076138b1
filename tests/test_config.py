"""The configuration folder, how it is composed, and what a mistake in it is called."""

import inspect
import shlex
import subprocess
import sys
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import lightning.pytorch as pl
import pytest
import yaml
from lightning.pytorch.loggers import WandbLogger
from omegaconf import OmegaConf
from pydantic import BaseModel

from noah_lightning.config.choices import AugmentSettings, Group
from noah_lightning.config.compose import compose_config, config_dir, override
from noah_lightning.config.schema import MixingSettings, OptimizerSettings, RunConfig, ScheduleSettings
from noah_lightning.data import REGISTRY
from noah_lightning.data.datamodule import ImageDataModule
from noah_lightning.errors import ConfigError, DataError, UserError
from noah_lightning.heads import NOAHHead, head_names
from noah_lightning.models import rows

CONF = Path(__file__).parents[1] / "conf"

# The paper's rows: timm's name or ours, recipe, N, r, published top-1 of the baseline and of NOAH.
ROWS: dict[str, tuple[str, str, int, float, float, float]] = {
    "resnet18": ("resnet18", "resnet", 4, 1 / 2, 70.25, 71.81),
    "resnet50": ("resnet50", "resnet", 4, 1 / 8, 76.23, 77.25),
    "resnet101": ("resnet101", "resnet", 4, 1 / 8, 77.41, 78.22),
    "resnet152": ("resnet152", "resnet", 4, 1 / 8, 78.16, 78.57),
    "mobilenetv2_100": ("mobilenetv2_100", "mobilenet", 8, 1 / 4, 72.02, 73.35),
    "mobilenetv2_075": ("mobilenetv2_075", "mobilenet", 8, 1 / 4, 69.65, 71.44),
    "mobilenetv2_050": ("mobilenetv2_050", "mobilenet", 8, 1 / 4, 64.30, 67.44),
    "mobilenetv2_035": ("mobilenetv2_035", "mobilenet", 8, 1 / 4, 59.62, 63.40),
    "mobilenetv3_small": ("mobilenetv3_small_noah", "mobilenetv3", 8, 1 / 4, 67.11, 68.92),
    "shufflenetv2_100": ("shufflenetv2_100", "shufflenet", 8, 1 / 4, 69.43, 70.72),
    "deit_base": ("deit_base_patch16_224", "deit", 4, 1 / 2, 81.85, 82.22),
    "deit_small": ("deit_small_patch16_224", "deit", 4, 1 / 2, 79.78, 80.56),
    "deit_tiny": ("deit_tiny_patch16_224", "deit", 4, 1 / 2, 72.16, 74.29),
    "deit_tiny_075": ("deit_tiny_075_patch16_224", "deit", 4, 1 / 2, 62.55, 66.64),
    "deit_tiny_050": ("deit_tiny_050_patch16_224", "deit", 4, 1 / 2, 51.36, 56.66),
    "pvt_tiny": ("pvt_v1_tiny", "pvt", 4, 1 / 2, 75.10, 76.51),
    "pvt_tiny_075": ("pvt_v1_tiny_075", "pvt", 4, 1 / 2, 71.81, 74.22),
    "pvt_tiny_050": ("pvt_v1_tiny_050", "pvt", 4, 1 / 2, 65.33, 68.50),
    "mixer_b16": ("mixer_b16_224", "mlp", 4, 1 / 2, 77.14, 77.49),
    "mixer_s16": ("mixer_s16_224", "mlp", 4, 1 / 2, 74.18, 75.09),
    "mixer_s16_075": ("mixer_s16_075_224", "mlp", 4, 1 / 2, 71.13, 72.32),
    "mixer_s16_050": ("mixer_s16_050_224", "mlp", 4, 1 / 2, 65.22, 66.81),
    "gmlp_s16": ("gmlp_s16_224", "mlp", 4, 1 / 2, 79.65, 79.95),
    "gmlp_ti16": ("gmlp_ti16_224", "mlp", 4, 1 / 2, 72.05, 73.39),
    "gmlp_ti16_075": ("gmlp_ti16_075_224", "mlp", 4, 1 / 2, 65.95, 67.71),
    "gmlp_ti16_050": ("gmlp_ti16_050_224", "mlp", 4, 1 / 2, 54.99, 56.89),
}

# The paper's recipes, as far as they differ from recipe=plain.
SGD = {"momentum": 0.9}
DEIT = {
    "epochs": 300,
    "batch_size": 8 * 128,
    "optimizer.name": "adamw",
    "optimizer.lr": 5e-4,
    "optimizer.lr_batch": 512,
    "optimizer.weight_decay": 0.05,
    "optimizer.decay": "matrices",
    "optimizer.options": {"eps": 1e-8, "betas": [0.9, 0.999]},
    "schedule.name": "cosine",
    "schedule.lag": 1,
    "schedule.warmup_epochs": 5,
    "schedule.warmup_lr": 1e-6,
    "schedule.final_lr": 1e-5,
    "ema": 0.99996,
    "label_smoothing": 0.1,
    "head_dropout": 0.1,
    "drop_path": 0.1,
    "mixing.mixup": 0.8,
    "mixing.cutmix": 1.0,
    "augment.interpolation": "bicubic",
    "augment.rand_augment": "rand-m9-mstd0.5-inc1",
    "augment.color_jitter": 0.3,
    "augment.erasing": 0.25,
    "augment.repeats": 3,
    "preprocess.interpolation": "bicubic",
}
MOBILENET = {
    "epochs": 150,
    "optimizer.lr": 0.05,
    "optimizer.weight_decay": 4e-5,
    "optimizer.options": SGD,
    "schedule.name": "cosine",
    "head_dropout": 0.2,
}
RECIPES: dict[str, dict[str, Any]] = {
    "resnet": {
        "optimizer.weight_decay": 1e-4,
        "optimizer.options": SGD,
        "schedule.name": "step",
        "schedule.milestones": [30, 60, 90],
        "head_dropout": 0.1,
    },
    "mobilenet": MOBILENET,
    "mobilenetv3": MOBILENET | {"optimizer.decay": "matrices"},
    "shufflenet": {
        "epochs": 240,
        "batch_size": 1024,
        "optimizer.lr": 0.5,
        "optimizer.lr_batch": 1024,
        "optimizer.weight_decay": 4e-5,
        "optimizer.decay": "matrices",
        "optimizer.options": SGD,
        "schedule.name": "linear",
    },
    "deit": DEIT,
    "pvt": DEIT | {"ema": None},
    "mlp": {
        "epochs": 300,
        "batch_size": 8 * 192,
        "optimizer.name": "adamw",
        "optimizer.lr": 7e-4,
        "optimizer.lr_batch": None,
        "optimizer.weight_decay": 0.067,
        "optimizer.decay": "matrices",
        "optimizer.options": {"eps": 1e-6, "betas": [0.9, 0.999]},
        "schedule.name": "cosine",
        "schedule.warmup_epochs": 20,
        "schedule.warmup_lr": 1e-6,
        "schedule.final_lr": 1e-5,
        "gradient_clip": 1.0,
        "ema": 0.99992,
        "label_smoothing": 0.1,
        "head_dropout": 0.1,
        "drop_path": 0.1,
        "block_dropout": 0.02333,
        "mixing.mixup": 0.5,
        "mixing.cutmix": 1.0,
        "augment.crop_aspect": [0.67, 1.5],
        "augment.interpolation": "random",
        "augment.rand_augment": "rand-m6-n3-mstd1.0-inc1",
        "augment.color_jitter": 0.4,
        "preprocess.mean": [0.5, 0.5, 0.5],
        "preprocess.std": [0.5, 0.5, 0.5],
        "preprocess.interpolation": "bicubic",
        "preprocess.crop_ratio": 0.9,
    },
}


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def read(group: str, option: str) -> dict[str, Any]:
    """The file itself, nothing composed or resolved."""
    content = OmegaConf.to_container(OmegaConf.load(CONF / group / f"{option}.yaml"))
    assert isinstance(content, dict)
    return content


def flat(group: Any, prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` → ``{"a.b": 1}``; the optimizer's options, which are open-ended, stay together."""
    leaves = {}
    for key, value in (group.model_dump() if isinstance(group, BaseModel) else group).items():
        within = isinstance(value, dict) and key != "options"
        leaves |= flat(value, f"{prefix}{key}.") if within else {f"{prefix}{key}": value}
    return leaves


def parameters(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters)


@cache
def composed(*overrides: str) -> RunConfig:
    """Composed once; for tests of the result, not of composing."""
    return compose_config(overrides)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder tree of three classes."""
    for split in ("train", "val"):
        for name in ("ape", "bee", "cat"):
            (tmp_path / "photos" / split / name).mkdir(parents=True)
    return tmp_path / "photos"


def mistake(*overrides: str) -> str:
    """The message of a UserError, which has to be one line."""
    with pytest.raises(UserError) as caught:
        compose_config(overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- composition


EVERY_OPTION = [
    (group, option)
    for group in ("model", "head", "data", "recipe", "trainer", "logger", "experiment")
    for option in options(group)
]


@pytest.mark.parametrize(("group", "option"), EVERY_OPTION)
def test_every_option_composes_to_plain_values(group: str, option: str, photos: Path) -> None:
    (photos / "pack.json").write_text('{"format": "noah_lightning pack", "version": 1, "classes": ["a", "b"]}')
    more = {
        "plugin": [f"{group}.name=mine", *(["data.num_classes=2"] if group == "data" else [])],
        "timm": ["model.name=convnext_tiny"],
        "imagefolder": [f"data.root={photos}"],
        "packed": [f"data.root={photos}"],
    }
    config = composed(f"{group}={option}", *more.get(option, []))
    text = yaml.safe_dump(config.model_dump())
    assert "${" not in text
    assert "???" not in text
    if group != "experiment":
        assert read(group, option).keys() - {"defaults"} <= getattr(config, group).model_dump().keys()


def test_every_group_has_a_test() -> None:
    planned = {"sweep", "launcher"}  # read while a sweep is planned, not part of a run's configuration
    assert {path.name for path in CONF.iterdir() if path.is_dir()} == {group for group, _ in EVERY_OPTION} | planned


def test_the_folder_in_use_is_that_of_the_clone() -> None:
    assert config_dir() == CONF


def test_the_result_has_the_groups_and_no_hydra() -> None:
    groups = {"seed", "plugins", "model", "head", "data", "recipe", "trainer", "checkpoint", "attention", "logger"}
    assert composed().model_dump().keys() == groups


def test_the_result_cannot_be_changed() -> None:
    config = composed()
    with pytest.raises(ValueError, match="frozen"):
        config.head.head_num = 3


def test_without_overrides_it_is_the_papers_resnet18() -> None:
    config = composed()
    assert (config.model.name, config.head.name, config.data.name) == ("resnet18", "noah", "imagenet")
    assert (config.recipe.epochs, config.recipe.batch_size, config.recipe.optimizer.name) == (100, 256, "sgd")


def test_composing_twice_gives_the_same_and_leaves_nothing_behind() -> None:
    before = compose_config([])
    compose_config(["experiment=demo", "head=gap", "seed=5"])
    mistake("head=noha")
    mistake("head.hed_num=4")
    assert compose_config([]) == before


@pytest.mark.parametrize(
    ("overrides", "head_num", "key_ratio"),
    [
        (["model=resnet18"], 4, 0.5),
        (["model=resnet50"], 4, 0.125),
        (["model=resnet50", "head.key_ratio=0.25"], 4, 0.25),
        (["head.key_ratio=0.25", "model=resnet50"], 4, 0.25),
        (["model=resnet50", "head.head_num=8"], 8, 0.125),
        (["model=timm", "model.name=convnext_tiny", "model.noah.head_num=2"], 2, 0.5),
    ],
)
def test_the_heads_defaults_are_the_models_and_the_command_line_wins(
    overrides: list[str], head_num: int, key_ratio: float
) -> None:
    head = composed(*overrides).head
    assert (head.head_num, head.key_ratio) == (head_num, key_ratio)


@pytest.mark.parametrize("row", ROWS)
def test_every_row_has_the_figures_of_the_papers_table(row: str) -> None:
    name, recipe, head_num, key_ratio, gap, noah = ROWS[row]
    config = composed(f"model={row}")
    assert (config.model.name, config.model.init, config.recipe.name) == (name, "official", recipe)
    assert config.model.noah.model_dump() == {
        "head_num": head_num,
        "key_ratio": key_ratio,
        "init": "lecun" if recipe == "mlp" else "official",
    }
    assert config.model.noah.model_dump().items() <= config.head.model_dump().items()
    assert config.model.published.model_dump() == {"gap": gap, "noah": noah}


def test_the_rows_are_those_of_the_table_in_its_order() -> None:
    assert list(rows.ROWS) == list(ROWS)
    assert set(ROWS) == set(options("model")) - {"timm", "resnet18_quarter"}


@pytest.mark.parametrize("order", [1, -1])
def test_a_recipe_on_the_command_line_wins_over_the_rows(order: int) -> None:
    config = compose_config(["model=deit_tiny", "recipe=mobilenet"][::order])
    assert flat(config.recipe) == flat(compose_config(["recipe=mobilenet"]).recipe)
    assert config.trainer.max_epochs == 150


@pytest.mark.parametrize("order", [1, -1])
def test_an_experiments_recipe_wins_over_the_rows(order: int) -> None:
    config = compose_config(["experiment=demo", "model=mixer_s16"][::order])
    assert config.model.name == "mixer_s16_224"
    assert flat(config.recipe) == flat(composed("recipe=digits").recipe)


def test_a_single_setting_wins_over_the_rows_recipe() -> None:
    recipe = composed("model=deit_tiny", "recipe.epochs=7").recipe
    assert (recipe.name, recipe.epochs) == ("deit", 7)


@pytest.mark.parametrize(
    ("recipe", "epochs", "times"),
    [
        ("resnet", 2, ([0.6, 1.2, 1.8], 0, 0)),
        ("resnet", 1, ([0.3, 0.6, 0.9], 0, 0)),
        ("resnet", 200, ([60, 120, 180], 0, 0)),
        ("deit", 30, ([], 0.5, 0.1)),
        ("mlp", 3, ([], 0.2, 0)),
        ("digits", 1, ([], 0.1, 0)),
    ],
)
def test_a_recipe_scales_with_its_epochs(recipe: str, epochs: int, times: tuple[list[float], float, float]) -> None:
    schedule = composed(f"recipe={recipe}", f"recipe.epochs={epochs}").recipe.schedule
    assert (schedule.milestones, schedule.warmup_epochs, schedule.lag) == times


def test_what_is_set_in_a_recipe_does_not_scale() -> None:
    assert composed("recipe.epochs=2", "recipe.schedule.milestones=[1]").recipe.schedule.milestones == [1]
    assert composed("recipe=deit", "recipe.schedule.lag=1", "recipe.epochs=2").recipe.schedule.lag == 1
    message = mistake("recipe.epochs=2", "recipe.schedule.milestones=[1,2]")
    assert message.startswith("recipe.schedule.milestones=[1.0, 2.0] must be before the end, epoch 2; ")


def test_a_model_that_is_no_row_keeps_the_default_recipe() -> None:
    assert composed("model=timm", "model.name=convnext_tiny").recipe.name == "resnet"


@pytest.mark.parametrize("row", ["resnet18", "shufflenetv2_100", "deit_tiny"])
def test_the_baseline_has_no_dropout_unless_told_to(row: str) -> None:
    assert composed(f"model={row}", "head=gap").head.model_dump() == {"name": "gap", "dropout": 0.0}


@pytest.mark.parametrize(
    ("overrides", "dropout"),
    [
        (["model=resnet18"], 0.1),
        (["model=mobilenetv2_100"], 0.2),
        (["model=shufflenetv2_100"], 0.0),
        (["model=resnet18", "recipe.head_dropout=0.3"], 0.3),
        (["model=resnet18", "head.dropout=0.4"], 0.4),
    ],
)
def test_with_equal_dropout_the_baseline_has_the_dropout_of_noah(overrides: list[str], dropout: float) -> None:
    for head in ("gap", "noah"):
        assert composed(f"head={head}", "recipe.equal_dropout=true", *overrides).head.dropout == dropout


def test_equal_dropout_leaves_noah_its_dropout_either_way() -> None:
    assert composed("recipe.equal_dropout=false").head.dropout == 0.1


@pytest.mark.parametrize("value", ["maybe", "1", "null", "no"])
def test_equal_dropout_is_true_or_false(value: str) -> None:
    assert mistake("head=gap", f"recipe.equal_dropout={value}").endswith(" must be true or false")


def test_the_experiment_chooses_data_recipe_and_model() -> None:
    config = composed("experiment=demo")
    assert (config.data.name, config.recipe.epochs, config.head.name) == ("digits", 3, "noah")
    assert config.model.args == {"channels": [16, 32, 64, 128], "output_stride": 8}


@pytest.mark.parametrize("order", [1, -1])
def test_the_command_line_wins_over_the_experiment(order: int) -> None:
    choices = ["experiment=demo", "model=resnet18", "recipe=resnet", "head=gap", "recipe.epochs=97"]
    config = composed(*choices[::order])
    assert (config.model.name, config.model.args, config.head.name) == ("resnet18", {}, "gap")
    assert (config.recipe.optimizer.name, config.recipe.epochs, config.data.name) == ("sgd", 97, "digits")


def test_one_setting_reaches_all_that_follow_it() -> None:
    changed = ["recipe.epochs=97", "recipe.batch_size=12", "seed=5", "recipe.head_dropout=0.3"]
    config = composed(*changed, "recipe.gradient_clip=2.5")
    assert config.trainer.max_epochs == 97
    assert config.trainer.gradient_clip_val == 2.5
    assert config.data.batch_size == 12
    assert config.data.seed == 5
    assert config.head.dropout == 0.3


def test_what_follows_can_be_set_by_itself() -> None:
    config = composed("trainer.max_epochs=2", "data.batch_size=3", "data.seed=4")
    assert (config.trainer.max_epochs, config.recipe.epochs) == (2, 100)
    assert (config.data.batch_size, config.recipe.batch_size) == (3, 256)
    assert (config.data.seed, config.seed) == (4, 0)


@pytest.mark.parametrize(("row", "clip"), [("resnet18", None), ("pvt_tiny", None), ("gmlp_s16", 1.0)])
def test_the_trainer_clips_gradients_as_the_recipe_says(row: str, clip: float | None) -> None:
    assert composed(f"model={row}").trainer.gradient_clip_val == clip


@pytest.mark.parametrize("data", ["imagenet", "imagefolder"])
@pytest.mark.parametrize("recipe", options("recipe"))
def test_photographs_are_prepared_as_the_recipe_says(recipe: str, data: str, photos: Path) -> None:
    config = compose_config([f"recipe={recipe}", f"data={data}", f"data.root={photos}"])
    assert {
        key: getattr(config.data, key) for key in config.recipe.preprocess.model_dump()
    } == config.recipe.preprocess.model_dump()
    assert config.data.augment == config.recipe.augment


@pytest.mark.parametrize("row", ["resnet18", "mixer_s16"])
def test_digits_are_no_photographs_and_keep_their_own_preparation(row: str) -> None:
    config = composed("data=digits", f"model={row}")
    assert (config.data.mean, config.data.std) == ([0.088] * 3, [0.228] * 3)
    assert config.data.model_dump().keys().isdisjoint({"augment", "crop_ratio", "interpolation"})


def test_the_class_count_is_that_of_the_folders(photos: Path) -> None:
    chosen = ["data=imagefolder", f"data.root={photos}"]
    assert compose_config(chosen).data.num_classes == 3
    (photos / "train" / "dog").mkdir()
    assert compose_config(chosen).data.num_classes == 4
    assert compose_config([*chosen, "data.num_classes=2"]).data.num_classes == 2


def test_values_on_the_command_line_keep_their_types() -> None:
    config = composed("data.mean=[0,0.5,1]", "head.head_split=false", "trainer.limit_val_batches=3")
    assert config.data.mean == [0, 0.5, 1]
    assert config.head.head_split is False
    assert config.trainer.limit_val_batches == 3


def test_open_ended_groups_take_new_keys() -> None:
    config = composed("+model.args.drop_path_rate=0.1", "+recipe.optimizer.options.nesterov=true")
    assert config.model.args == {"drop_path_rate": 0.1}
    assert config.recipe.optimizer.options == {"momentum": 0.9, "nesterov": True}


# --- mistakes


@pytest.mark.parametrize(
    ("overrides", "key", "nearest"),
    [
        (["headd.head_num=4"], "headd.head_num", "head.head_num"),
        (["head.hed_num=4"], "head.hed_num", "head.head_num"),
        (["data.foo=1"], "data.foo", None),
        (["modle=resnet50"], "modle", "model"),
        (["trainer.max_epoch=4"], "trainer.max_epoch", "trainer.max_epochs"),
        (["data=digits", "data.digit_siz=4"], "data.digit_siz", "data.digit_size"),
        (["data.digit_siz=4", "experiment=demo"], "data.digit_siz", "data.digit_size"),
        (["logger=wandb", "logger.projct=a"], "logger.projct", "logger.project"),
        (["recipe.optimizer.lrr=1"], "recipe.optimizer.lrr", "recipe.optimizer.lr"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_one(overrides: list[str], key: str, nearest: str | None) -> None:
    message = mistake(*overrides)
    assert message.startswith(f"unknown setting {key!r}; did you mean ")
    if nearest:
        assert f"did you mean {nearest} or" in message or message.endswith(f"did you mean {nearest}?")


def test_a_key_that_another_option_lacks_is_not_suggested() -> None:
    message = mistake("head=gap", "head.head_num=4")
    assert message.startswith("unknown setting 'head.head_num'")
    assert "mean head.head_num" not in message
    assert "or head.head_num" not in message


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("head=noha", "head has no option 'noha'; did you mean noah?"),
        ("data=digit", "data has no option 'digit'; did you mean digits?"),
        ("experiment=dmo", "experiment has no option 'dmo'; did you mean demo?"),
        ("logger=mlflow", "logger has no option 'mlflow'; choose from csv, tensorboard, wandb"),
        (
            "model=resnet999",
            "model has no option 'resnet999'; did you mean resnet50 or resnet18 or resnet152? "
            "(for any model of timm: model=timm model.name=resnet999)",
        ),
    ],
)
def test_an_unknown_option_is_named_with_the_nearest_one(choice: str, message: str) -> None:
    assert mistake(choice) == message


def test_a_model_without_a_name_is_asked_for_it() -> None:
    assert mistake("model=timm") == "model.name has no value; add model.name=… to the command"


@pytest.mark.parametrize(
    ("malformed", "message"),
    [
        ("head.head_num", "'head.head_num' is not an override; write key=value, or run noah settings for all keys"),
        ("resnet18", "'resnet18' is not an override; write key=value, such as model=resnet18"),
        ("digits", "'digits' is not an override; write key=value, such as data=digits or recipe=digits"),
        ("seed==3", "'seed==3' cannot be parsed; text is quoted, also for the shell: 'seed=\"=3\"'"),
        ("head.head_num=[", "'head.head_num=[' cannot be parsed"),
        ("seed=1,2", "seed=1,2 is several values: add -m for a run of each, or write [...] for a list"),
    ],
)
def test_a_malformed_override_is_quoted(malformed: str, message: str) -> None:
    assert mistake(malformed).startswith(message)


@pytest.mark.parametrize("name", ["a=b", "été", "a;b", 'a"b', "a'b", "a{b", "a[b", "a&b #c", "日本 (1)"])
def test_the_suggested_quotes_work_in_a_shell(name: str) -> None:
    message = mistake(f"recipe.name={name}")
    assert message.startswith(f"{f'recipe.name={name}'!r} cannot be parsed; ")
    words = shlex.split(f"noah train experiment=demo {message.partition('shell: ')[2]}")
    assert compose_config(words[2:]).recipe.name == name


@pytest.mark.parametrize("plus", ["+", "++"])
def test_an_added_key_that_nothing_reads_is_refused(plus: str) -> None:
    message = mistake("data=digits", f"{plus}data.digit_siz=4")
    assert message.startswith("unknown setting 'data.digit_siz'; did you mean data.digit_size or")


def test_data_without_a_root_says_how_to_give_it() -> None:
    with pytest.raises(DataError, match=r"data\.root is not set: add data\.root=/path/to/dataset"):
        compose_config(["data=imagefolder"])


def test_a_root_that_is_not_there_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "nowhere"
    assert mistake("data=imagefolder", f"data.root={missing}").startswith(f"data.root={missing} does not exist")


def test_a_reference_to_nothing_is_named() -> None:
    assert "nope" in mistake("seed=${nope}")


# --- override(): settings of a recorded configuration changed


@pytest.fixture
def demo() -> RunConfig:
    return composed("experiment=demo")  # frozen


def test_override_changes_a_copy(demo: RunConfig) -> None:
    original = demo.model_dump()
    changed = override(demo, ["data.batch_size=5", "data.mean=[0, 0.5, 1]", "head.init=small"])
    assert (changed.data.batch_size, changed.data.mean, changed.head.init) == (5, [0, 0.5, 1], "small")
    assert demo.model_dump() == original


def test_override_of_nothing_is_the_same(demo: RunConfig) -> None:
    assert override(demo, []) == demo


def test_override_leaves_the_rest_alone(demo: RunConfig) -> None:
    changed = override(demo, ["data.batch_size=5"])
    assert changed.replace("data", batch_size=demo.data.batch_size) == demo


def test_the_last_override_of_a_key_wins(demo: RunConfig) -> None:
    assert override(demo, ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5),
        ("0.5", 0.5),
        ("true", True),
        ("null", None),
        ("[1, 2]", [1, 2]),
        ("/data/birds", "/data/birds"),
        ("a=b", "a=b"),
    ],
)
def test_override_reads_typed_values(demo: RunConfig, text: str, value: object) -> None:
    changed = override(demo, [f"model.args.channels={text}"]).model.args["channels"]
    assert changed == value
    assert isinstance(value, list) or type(changed) is type(value)


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("data.batch_sze=5", "unknown setting 'data.batch_sze'; did you mean data.batch_size or"),
        ("hed.head_num=5", "unknown setting 'hed.head_num'; did you mean head.head_num or"),
        ("data.mean.0=5", "unknown setting 'data.mean.0'; did you mean data.mean or"),
        ("data.batch_size", "'data.batch_size' is not an override; write key=value"),
        ("data.mean=[1, 2", "'data.mean=[1, 2' cannot be set: "),
        ("data={a: 1}", "unknown setting 'data.a'"),
    ],
)
def test_a_bad_override_is_one_line_that_names_it(demo: RunConfig, pair: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        override(demo, ["seed=3", pair])
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_settings_are_plain_arguments_without_those_left_out(demo: RunConfig) -> None:
    assert demo.model.args == {"channels": [16, 32, 64, 128], "output_stride": 8}
    assert type(demo.model.args["channels"]) is list
    assert demo.head.arguments("name", "init").keys() == demo.head.model_dump().keys() - {"name", "init"}


# --- the files and the code they configure have the same words


@pytest.mark.parametrize("name", sorted({*options("data")} - {"plugin"}))
def test_data_files_have_exactly_the_settings_of_their_module(name: str) -> None:
    module: type[ImageDataModule] = resolve_name(f"noah_lightning.data.{REGISTRY[name]}")
    content = read("data", name)
    assert content.pop("name") == name
    assert content.keys() == module.Settings.model_fields.keys() - {"name"}


def test_every_data_module_has_a_file() -> None:
    assert set(options("data")) == {*REGISTRY, "plugin"}


def test_head_files_have_exactly_the_settings_of_their_class() -> None:
    """For the other heads, see test_heads.py."""
    assert set(options("head")) == {"gap", "plugin", *head_names()}
    assert read("head", "gap").keys() == {"name", "dropout"}
    assert read("head", "noah").keys() == {"name", *parameters(NOAHHead)} - {"in_channels", "num_classes"}


@pytest.mark.parametrize("name", options("recipe"))
def test_recipes_have_the_settings_of_the_plain_one_at_every_level_once_composed(name: str) -> None:
    recipe = composed(f"recipe={name}").recipe
    assert recipe.name == name
    assert flat(recipe).keys() == flat(read("recipe", "plain")).keys()


@pytest.mark.parametrize(
    ("group", "settings"),
    [
        ("optimizer", OptimizerSettings),
        ("schedule", ScheduleSettings),
        ("mixing", MixingSettings),
        ("augment", AugmentSettings),
    ],
)
def test_the_plain_recipe_has_exactly_the_settings_of_the_schema(group: str, settings: type[Group]) -> None:
    assert read("recipe", "plain")[group].keys() == settings.model_fields.keys()


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_the_plain_one_but_for_what_the_paper_says(name: str) -> None:
    expected = flat(read("recipe", "plain")) | RECIPES[name] | {"name": name}
    assert flat(composed(f"recipe={name}").recipe) == expected


def test_every_recipe_is_the_papers_but_for_three() -> None:
    assert set(options("recipe")) == {*RECIPES, "plain", "digits", "probe"}


@pytest.mark.parametrize("name", options("model"))
def test_model_files_have_the_same_settings_once_composed(name: str) -> None:
    model = composed(f"model={name}", *(["model.name=resnet18"] if name == "timm" else [])).model
    keys = {
        "name",
        "pretrained",
        "weights",
        "class_token",
        "freeze",
        "init",
        "args",
        "noah",
        "published",
    }
    assert model.model_dump().keys() == keys
    assert model.noah.model_dump().keys() == {"head_num", "key_ratio", "init"}
    assert model.published.model_dump().keys() == {"gap", "noah"}


@pytest.mark.parametrize("name", options("trainer"))
def test_trainer_files_hold_arguments_of_lightnings_trainer(name: str) -> None:
    ours = {"defaults", "channels_last", "compile", "nonfinite"}
    assert read("trainer", name).keys() - ours <= parameters(pl.Trainer)


@pytest.mark.parametrize("name", options("logger"))
def test_logger_files_name_themselves(name: str) -> None:
    assert read("logger", name)["name"] == name


def test_wandbs_file_holds_arguments_of_wandbs_logger() -> None:
    known = parameters(WandbLogger) | parameters(import_module("wandb").init)
    assert read("logger", "wandb").keys() <= known


def test_hydras_compose_works_with_nothing_but_the_import(jpeg_tree: Path) -> None:
    program = (
        "import sys, hydra, noah_lightning\n"
        f"with hydra.initialize_config_dir({str(config_dir())!r}, version_base='1.3'):\n"
        f"    cfg = hydra.compose('config', ['data=imagefolder', {f'data.root={jpeg_tree}'!r}])\n"
        "assert cfg.data.num_classes == 2\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env={"PYTHONPATH": ":".join(sys.path)})
