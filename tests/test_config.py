"""The configuration folder, how it is composed, and what a mistake in it is called."""

import dataclasses
import inspect
from importlib import import_module
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from lightning.pytorch.loggers import WandbLogger
from omegaconf import DictConfig, OmegaConf

from noah_lightning.config import compose_config, config_dir, override, settings, typed
from noah_lightning.data import REGISTRY
from noah_lightning.data.module import ImageDataModule
from noah_lightning.errors import ConfigError, DataError, UserError
from noah_lightning.heads import NOAHHead, head_names
from noah_lightning.task import OptimizerSettings, ScheduleSettings

CONF = Path(__file__).parents[1] / "conf"
MODEL_KEYS = {"name", "pretrained", "weights", "class_token", "args", "noah"}


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def read(group: str, option: str) -> dict[str, Any]:
    """The file itself, nothing composed or resolved."""
    content = OmegaConf.to_container(OmegaConf.load(CONF / group / f"{option}.yaml"))
    assert isinstance(content, dict)
    return content


def parameters(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters)


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
    more = {
        "timm": ["model.name=convnext_tiny"],
        "imagefolder": [f"data.root={photos}"],
    }
    config = compose_config([f"{group}={option}", *more.get(option, [])])
    text = OmegaConf.to_yaml(config)
    assert "${" not in text
    assert "???" not in text
    if group != "experiment":
        assert read(group, option).keys() - {"defaults"} <= config[group].keys()


def test_every_group_has_a_test() -> None:
    assert {path.name for path in CONF.iterdir() if path.is_dir()} == {group for group, _ in EVERY_OPTION}


def test_the_folder_in_use_is_that_of_the_clone() -> None:
    assert config_dir() == CONF


def test_the_result_has_the_groups_and_no_hydra() -> None:
    assert compose_config([]).keys() == {"seed", "model", "head", "data", "recipe", "trainer", "logger"}


def test_the_result_refuses_new_keys() -> None:
    config = compose_config([])
    assert OmegaConf.is_struct(config)
    with pytest.raises(AttributeError):
        config.head.hed_num = 3


def test_without_overrides_it_is_the_papers_resnet18() -> None:
    config = compose_config([])
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
    head = compose_config(overrides).head
    assert (head.head_num, head.key_ratio) == (head_num, key_ratio)


def test_the_experiment_chooses_data_recipe_and_model() -> None:
    config = compose_config(["experiment=demo"])
    assert (config.data.name, config.recipe.epochs, config.head.name) == ("digits", 3, "noah")
    assert config.model.args == {"channels": [16, 32, 64, 128], "output_stride": 8}


@pytest.mark.parametrize("order", [1, -1])
def test_the_command_line_wins_over_the_experiment(order: int) -> None:
    choices = ["experiment=demo", "model=resnet18", "recipe=resnet", "head=gap", "recipe.epochs=7"]
    config = compose_config(choices[::order])
    assert (config.model.name, config.model.args, config.head) == ("resnet18", {}, {"name": "gap"})
    assert (config.recipe.optimizer.name, config.recipe.epochs, config.data.name) == ("sgd", 7, "digits")


def test_one_setting_reaches_all_that_follow_it() -> None:
    config = compose_config(["recipe.epochs=7", "recipe.batch_size=12", "seed=5", "recipe.head_dropout=0.3"])
    assert config.trainer.max_epochs == 7
    assert config.data.batch_size == 12
    assert config.data.seed == 5
    assert config.head.dropout == 0.3


def test_what_follows_can_be_set_by_itself() -> None:
    config = compose_config(["trainer.max_epochs=2", "data.batch_size=3", "data.seed=4"])
    assert (config.trainer.max_epochs, config.recipe.epochs) == (2, 100)
    assert (config.data.batch_size, config.recipe.batch_size) == (3, 256)
    assert (config.data.seed, config.seed) == (4, 0)


def test_the_class_count_is_that_of_the_folders(photos: Path) -> None:
    chosen = ["data=imagefolder", f"data.root={photos}"]
    assert compose_config(chosen).data.num_classes == 3
    (photos / "train" / "dog").mkdir()
    assert compose_config(chosen).data.num_classes == 4
    assert compose_config([*chosen, "data.num_classes=2"]).data.num_classes == 2


def test_values_on_the_command_line_keep_their_types() -> None:
    config = compose_config(["data.mean=[0,0.5,1]", "head.head_split=false", "trainer.limit_val_batches=3"])
    assert config.data.mean == [0, 0.5, 1]
    assert config.head.head_split is False
    assert config.trainer.limit_val_batches == 3


def test_open_ended_groups_take_new_keys() -> None:
    config = compose_config(["+model.args.drop_path_rate=0.1", "+recipe.optimizer.options.nesterov=true"])
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
    assert message.startswith(f"there is no setting {key!r}; did you mean ")
    if nearest:
        assert f"did you mean {nearest} or" in message or message.endswith(f"did you mean {nearest}?")


def test_a_key_that_another_option_lacks_is_not_suggested() -> None:
    message = mistake("head=gap", "head.head_num=4")
    assert message.startswith("there is no setting 'head.head_num'")
    assert "mean head.head_num" not in message
    assert "or head.head_num" not in message


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("head=noha", "head has no option 'noha'; did you mean noah?"),
        ("data=digit", "data has no option 'digit'; did you mean digits?"),
        ("experiment=dmo", "experiment has no option 'dmo'; did you mean demo?"),
        ("logger=mlflow", "logger has no option 'mlflow'; there are csv, tensorboard, wandb"),
        (
            "model=resnet999",
            "model has no option 'resnet999'; did you mean resnet50 or resnet18? "
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
        ("head.head_num", "Error parsing override 'head.head_num' missing EQUAL"),
        ("head.head_num=[", "no viable alternative at input '['"),
        ("seed=1,2", "Ambiguous value for argument 'seed=1,2'"),
    ],
)
def test_a_malformed_override_is_quoted(malformed: str, message: str) -> None:
    assert mistake(malformed).startswith(message)


@pytest.mark.parametrize("plus", ["+", "++"])
def test_an_added_key_that_nothing_reads_is_refused(plus: str) -> None:
    message = mistake("data=digits", f"{plus}data.digit_siz=4")
    assert message.startswith("there is no setting 'data.digit_siz'; did you mean data.digit_size or")


@pytest.mark.parametrize(("group", "dataclass"), [("optimizer", OptimizerSettings), ("schedule", ScheduleSettings)])
def test_a_recipes_settings_become_the_dataclass_that_describes_them(group: str, dataclass: type) -> None:
    config = compose_config(["recipe=digits"])
    assert typed(dataclass, config, f"recipe.{group}") == dataclass(**read("recipe", "digits")[group])


def test_a_setting_that_its_dataclass_lacks_is_named_with_the_nearest_one() -> None:
    config = OmegaConf.create({"recipe": {"optimizer": {"name": "sgd", "lrr": 0.1}}})
    with pytest.raises(ConfigError, match=r"^there is no setting 'recipe\.optimizer\.lrr'; did you mean lr\?$"):
        typed(OptimizerSettings, config, "recipe.optimizer")


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
def demo() -> DictConfig:
    return compose_config(["experiment=demo"])


def test_override_changes_a_copy(demo: DictConfig) -> None:
    original = OmegaConf.to_container(demo)
    changed = override(demo, ["data.batch_size=5", "data.mean=[0, 0.5, 1]", "head.init=small"])
    assert (changed.data.batch_size, changed.data.mean, changed.head.init) == (5, [0, 0.5, 1], "small")
    assert OmegaConf.to_container(demo) == original
    assert OmegaConf.is_struct(changed)


def test_override_of_nothing_is_the_same(demo: DictConfig) -> None:
    assert override(demo, []) == demo


def test_override_leaves_the_rest_alone(demo: DictConfig) -> None:
    changed = override(demo, ["data.batch_size=5"])
    changed.data.batch_size = demo.data.batch_size
    assert changed == demo


def test_the_last_override_of_a_key_wins(demo: DictConfig) -> None:
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
def test_override_reads_typed_values(demo: DictConfig, text: str, value: object) -> None:
    changed = override(demo, [f"data.name={text}"]).data.name
    assert changed == value
    assert isinstance(value, list) or type(changed) is type(value)


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("data.batch_sze=5", "there is no setting 'data.batch_sze'; did you mean data.batch_size or"),
        ("hed.head_num=5", "there is no setting 'hed.head_num'; did you mean head.head_num or"),
        ("data.mean.0=5", "there is no setting 'data.mean.0'; did you mean data.mean or"),
        ("data.batch_size", "'data.batch_size' is no override; write key=value"),
        ("data.mean=[1, 2", "'data.mean=[1, 2' cannot be set: "),
        ("data={a: 1}", "'data={a: 1}' cannot be set: "),
    ],
)
def test_a_bad_override_is_one_line_that_names_it(demo: DictConfig, pair: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        override(demo, ["seed=3", pair])
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_settings_are_plain_arguments_without_those_left_out(demo: DictConfig) -> None:
    assert settings(demo, "model.args") == {"channels": [16, 32, 64, 128], "output_stride": 8}
    assert type(settings(demo, "model.args")["channels"]) is list
    assert settings(demo, "head", "name", "init").keys() == demo.head.keys() - {"name", "init"}


# --- the files and the code they configure have the same words


@pytest.mark.parametrize("name", options("data"))
def test_data_files_have_exactly_the_settings_of_their_module(name: str) -> None:
    file, class_name = REGISTRY[name]
    module: type[ImageDataModule] = getattr(import_module(f"noah_lightning.data.{file}"), class_name)
    content = read("data", name)
    assert content.pop("name") == name
    assert content.keys() == parameters(module)


def test_every_data_module_has_a_file() -> None:
    assert set(options("data")) == set(REGISTRY)


def test_head_files_have_exactly_the_settings_of_their_class() -> None:
    assert set(options("head")) == {"gap", *head_names()} == {"gap", "noah"}
    assert read("head", "gap") == {"name": "gap"}
    assert read("head", "noah").keys() == {"name", *parameters(NOAHHead)} - {"in_channels", "num_classes"}


@pytest.mark.parametrize("name", options("recipe"))
def test_recipe_files_have_exactly_the_settings_that_are_read(name: str) -> None:
    recipe = read("recipe", name)
    assert recipe.keys() == {"epochs", "batch_size", "optimizer", "schedule", "label_smoothing", "head_dropout"}
    assert recipe["optimizer"].keys() == {field.name for field in dataclasses.fields(OptimizerSettings)}
    assert recipe["schedule"].keys() == {field.name for field in dataclasses.fields(ScheduleSettings)}
    OptimizerSettings(**recipe["optimizer"])
    ScheduleSettings(**recipe["schedule"])


@pytest.mark.parametrize("name", options("model"))
def test_model_files_have_the_same_settings_once_composed(name: str) -> None:
    model = compose_config([f"model={name}", *(["model.name=resnet18"] if name == "timm" else [])]).model
    assert model.keys() == MODEL_KEYS
    assert model.noah.keys() == {"head_num", "key_ratio"}


@pytest.mark.parametrize("name", options("trainer"))
def test_trainer_files_hold_arguments_of_lightnings_trainer(name: str) -> None:
    assert read("trainer", name).keys() <= parameters(pl.Trainer)


@pytest.mark.parametrize("name", options("logger"))
def test_logger_files_name_themselves(name: str) -> None:
    assert read("logger", name)["name"] == name


def test_wandbs_file_holds_arguments_of_wandbs_logger() -> None:
    known = parameters(WandbLogger) | parameters(import_module("wandb").init)
    assert read("logger", "wandb").keys() <= known
