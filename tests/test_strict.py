"""Every setting of every group has a type and a range; a mistake is one line, before anything is started."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Annotated

import pytest
import yaml
from pydantic import Field
from pydantic_core import PydanticUndefined

from conftest import TINY, Answer
from noah_lightning.config.choices import Group
from noah_lightning.config.compose import compose_config, config_dir, override
from noah_lightning.config.parsing import allowed, known_settings, parse
from noah_lightning.config.schema import RecipeSettings, RunConfig
from noah_lightning.errors import ConfigError, UserError
from noah_lightning.train import train

Noah = Callable[..., Answer]
NO_NUMBER = ("abc", "[1]", "true", "nan", "-1")
NO_WHOLE = (*NO_NUMBER, "1.5", "inf")
NO_FLAG = ("maybe", "1", "[]", "null")
NO_WORD = ("abc", "3", "[1]", "true")

# Bad values of each setting, for the digits with NOAH.
BAD: dict[str, tuple[str, ...]] = {
    "seed": (*NO_WHOLE, "4294967296"),
    "plugins": ("abc", "3", "[1]", "true", "null"),
    "checkpoint.every_n_steps": (*NO_WHOLE, "0"),
    "checkpoint.every_minutes": (*NO_NUMBER, "0", "inf"),
    "checkpoint.keep": (*NO_WHOLE, "0"),
    "trainer.accelerator": (*NO_WORD, "gpus"),
    "trainer.devices": ("0", "-2", "abc", "[]", "[0,0]", "[-1]", "1.5", "true"),
    "trainer.num_nodes": (*NO_WHOLE, "0"),
    "trainer.strategy": (*NO_WORD, "dpp", "deepspeed_stage_3", "fsdp"),
    "trainer.sync_batchnorm": NO_FLAG,
    "trainer.max_epochs": (*NO_WHOLE, "0", "1000001"),
    "trainer.precision": (*NO_WORD, "16-mix"),
    "trainer.channels_last": NO_FLAG,
    "trainer.compile": NO_FLAG,
    "trainer.accumulate_grad_batches": (*NO_WHOLE, "0"),
    "trainer.gradient_clip_val": (*NO_NUMBER, "0", "inf"),
    "trainer.check_val_every_n_epoch": (*NO_WHOLE, "0", "3"),
    "trainer.limit_train_batches": (*NO_NUMBER, "0", "1.5", "inf"),
    "trainer.limit_val_batches": (*NO_NUMBER, "0", "1.5", "inf"),
    "trainer.num_sanity_val_steps": ("abc", "[1]", "true", "nan", "-2"),
    "trainer.log_every_n_steps": (*NO_WHOLE, "0"),
    "trainer.deterministic": ("maybe", "1", "[]", "null"),
    "trainer.nonfinite": (*NO_WORD, "skipp"),
    "trainer.benchmark": ("maybe", "1", "[]"),
    "recipe.name": ("3", "[1]", "true", "null"),
    "recipe.epochs": (*NO_WHOLE, "0"),
    "recipe.batch_size": (*NO_WHOLE, "0"),
    "recipe.gradient_clip": (*NO_NUMBER, "0", "inf"),
    "recipe.ema": (*NO_NUMBER, "0", "1", "inf"),
    "recipe.label_smoothing": (*NO_NUMBER, "1", "inf"),
    "recipe.head_dropout": (*NO_NUMBER, "1", "inf"),
    "recipe.equal_dropout": NO_FLAG,
    "recipe.head_batch_norm": NO_FLAG,
    "recipe.drop_path": (*NO_NUMBER, "1"),
    "recipe.block_dropout": (*NO_NUMBER, "1"),
    "recipe.loss": (*NO_WORD, "focal", "bce"),
    "recipe.asymmetric.gamma_neg": (*NO_NUMBER, "inf", "0.5"),
    "recipe.asymmetric.gamma_pos": (*NO_NUMBER, "inf", "0.5"),
    "recipe.asymmetric.clip": (*NO_NUMBER, "1"),
    "recipe.optimizer.name": (*NO_WORD, "adam"),
    "recipe.optimizer.lr": (*NO_NUMBER, "inf"),
    "recipe.optimizer.lr_batch": (*NO_WHOLE, "0"),
    "recipe.optimizer.lr_choices": ("abc", "0.1", "[0]", "[abc]"),
    "recipe.optimizer.weight_decay": (*NO_NUMBER, "inf"),
    "recipe.optimizer.decay": (*NO_WORD, "some"),
    "recipe.optimizer.options": ("abc", "3", "[1]", "{momentun:0.9}", "{betas:[2,2]}", "{betas:abc}", "{eps:-1}"),
    "recipe.schedule.name": (*NO_WORD, "cosin"),
    "recipe.schedule.per": (*NO_WORD, "batch"),
    "recipe.schedule.lag": (*NO_NUMBER, "inf", "4"),
    "recipe.schedule.warmup_epochs": (*NO_NUMBER, "inf", "4"),
    "recipe.schedule.warmup_lr": (*NO_NUMBER, "inf"),
    "recipe.schedule.final_lr": (*NO_NUMBER, "inf"),
    "recipe.schedule.gamma": (*NO_NUMBER, "inf"),
    "recipe.mixing.mixup": (*NO_NUMBER, "inf"),
    "recipe.mixing.cutmix": (*NO_NUMBER, "inf"),
    "recipe.mixing.switch": (*NO_NUMBER, "1.1"),
    "recipe.augment.enabled": NO_FLAG,
    "recipe.augment.crop_aspect": (*NO_NUMBER, "[1]", "[2,1]", "[0,1]", "[a,b]", "[1,inf]"),
    "recipe.augment.interpolation": (*NO_WORD, "nearest"),
    "recipe.augment.rand_augment": (*NO_WORD, "rand-x9", "rand-m9-inc"),
    "recipe.augment.color_jitter": (*NO_NUMBER, "inf"),
    "recipe.augment.erasing": (*NO_NUMBER, "1.1"),
    "recipe.augment.repeats": (*NO_WHOLE, "0"),
    "recipe.preprocess.mean": (*NO_NUMBER, "[1,1]", "[0,0,2]", "[a,b,c]", "[0,0,nan]"),
    "recipe.preprocess.std": (*NO_NUMBER, "[1,1]", "[0,1,1]"),
    "recipe.preprocess.interpolation": (*NO_WORD, "random"),
    "recipe.preprocess.crop_ratio": (*NO_NUMBER, "0", "1.1"),
    "model.name": ("3", "[1]", "true", "null", "resnet19", "../resnet18"),
    "model.pretrained": NO_FLAG,
    "model.weights": ("3", "[1]", "true", "nowhere.pth"),
    "model.class_token": ("maybe", "1", "[]"),
    "model.freeze": NO_FLAG,
    "model.init": (*NO_WORD, "tim"),
    "model.args": ("3", "abc", "[1]", "{features_only:true}", "{pretrained_cfg:{url:x}}", "{checkpoint_path:x}"),
    "model.noah.head_num": (*NO_WHOLE, "0"),
    "model.noah.key_ratio": (*NO_NUMBER, "0", "1"),
    "model.noah.init": NO_WORD,
    "model.published.gap": (*NO_NUMBER, "101"),
    "model.published.noah": (*NO_NUMBER, "101"),
    "head.name": (*NO_WORD, "noha"),
    "head.head_num": (*NO_WHOLE, "0", "7"),
    "head.key_ratio": (*NO_NUMBER, "0", "1"),
    "head.dropout": (*NO_NUMBER, "1", "inf"),
    "head.head_split": NO_FLAG,
    "head.kv_split": NO_FLAG,
    "head.init": (*NO_WORD, "timm"),
    "head.kernel": (*NO_WORD, "triton"),
    "logger.name": (*NO_WORD, "mlflow"),
    "attention.curve_images": (*NO_WHOLE, "1025"),
    "attention.picture_every_n_epochs": NO_WHOLE,
    "attention.picture_images": (*NO_WHOLE, "0", "33"),
    "data.name": (*NO_WORD, "digit"),
    "data.num_classes": (*NO_WHOLE, "0", "11"),
    "data.mean": (*NO_NUMBER, "[1,1]"),
    "data.std": (*NO_NUMBER, "[0,1,1]"),
    "data.image_size": (*NO_WHOLE, "0"),
    "data.holdout": (*NO_NUMBER, "1"),
    "data.batch_size": (*NO_WHOLE, "0"),
    "data.num_workers": NO_WHOLE,
    "data.seed": NO_WHOLE,
    "data.train_images": (*NO_WHOLE, "0"),
    "data.val_images": (*NO_WHOLE, "0"),
    "data.digit_size": (*NO_WHOLE, "7", "65"),
    "data.num_fragments": NO_WHOLE,
    "data.fragment_size": (*NO_WHOLE, "0", "25"),
}
# With other choices of groups, only what those have.
GAP = {"head.dropout": (*NO_NUMBER, "1")}
STEP = {"recipe.schedule.milestones": ("abc", "3", "true", "[]", "[2,1]", "[1,1]", "[1,3]", "[a]", "[nan]", "[-1,1]")}
WANDB = {
    "logger.project": ("3", "[1]", "true", "null"),
    "logger.entity": ("3", "[1]", "true"),
    "logger.group": ("3", "[1]", "true"),
    "logger.tags": ("3", "abc", "true", f"[{'x' * 65}]"),
    "logger.mode": ("3", "[1]", "true", "onlin"),
}
PHOTOS = {
    "data.root": ("3", "[1]", "true", "/nowhere", "null", f"/{'x' * 300}", "~nobody-by-this-name/x"),
    "data.crop_ratio": (*NO_NUMBER, "0", "1.1"),
    "data.interpolation": (*NO_WORD, "random"),
    "data.image_size": (*NO_WHOLE, "0"),
    "data.num_workers": NO_WHOLE,
    "data.augment": ("3", "abc", "[1]"),
    "data.max_unreadable": NO_WHOLE,
    "data.exif_orientation": ("maybe", "1", "[]"),  # null in a pack
}
MNIST = {
    "data.root": PHOTOS["data.root"],
    **dict.fromkeys(
        ("data.train_images", "data.val_images", "data.image_size", "data.num_classes"), (*NO_WHOLE, "0")
    ),
    "data.interpolation": (*NO_WORD, "random"),
    "data.num_workers": NO_WHOLE,
}
OF_DATA = {
    "fashion_mnist": MNIST,
    "mnist": MNIST,
    "imagefolder": PHOTOS,
    "imagenet": PHOTOS | {"data.unpack": NO_FLAG},
    "packed": PHOTOS | {"data.mix_shards": NO_WHOLE},
    "coco": PHOTOS | {"data.year": (*NO_WHOLE, "2015")},
    "digits_multilabel": {"data.max_digits": (*NO_WHOLE, "0", "5")},
}


def cases(table: dict[str, tuple[str, ...]]) -> list[str]:
    return [f"{key}={value}" for key, values in table.items() for value in values]


# A setting that others follow may be reported by their names.
ALSO = {
    "recipe.head_dropout": ["head.dropout"],
    "recipe.epochs": ["trainer.max_epochs"],
    "recipe.gradient_clip": ["trainer.gradient_clip_val"],
    "trainer.accumulate_grad_batches": ["recipe.batch_size"],  # cannot be divided
    "trainer.num_nodes": ["recipe.batch_size"],
    "trainer.devices": ["recipe.batch_size"],
    "model.noah.head_num": ["head.head_num"],
    "model.noah.key_ratio": ["head.key_ratio"],
    "model.noah.init": ["head.init"],
    "model.name": ["resnet19", "../resnet18"],
    "model.weights": ["nowhere.pth"],
    "model.class_token": ["class_token"],
    "head.head_num": ["head_num=7"],
    "head.name": ["noha", "no head is called"],
    "data.num_classes": ["num_classes=11"],
    "data.augment": ["recipe.augment"],
}
# The schema alone cannot know these: they depend on the model, the data or torch, which refuse them later.
LATER = {
    "recipe.loss=bce",  # of single-label data
    *("model.name=resnet19", "model.name=../resnet18", "model.weights=nowhere.pth", "head.head_num=7"),
    *("data.num_classes=11", "head.name=noha", "head.name=abc", "data.name=digit", "data.name=abc"),
    *("model.args={features_only:true}", "model.args={pretrained_cfg:{url:x}}", "model.args={checkpoint_path:x}"),
    *("recipe.optimizer.options={momentun:0.9}", "recipe.optimizer.options={betas:[2,2]}"),
    *("recipe.optimizer.options={betas:abc}", "recipe.optimizer.options={eps:-1}"),
    *("data.root=/nowhere", "data.root=null", f"data.root=/{'x' * 300}", "data.root=~nobody-by-this-name/x"),
}

USUAL = (*(word for word in TINY if not word.startswith("trainer.max_epochs")), "head=noah", "trainer.max_epochs=2")
OTHER_GROUPS = [
    (("head=gap",), GAP),
    (("recipe.schedule.name=step", "recipe.schedule.milestones=[1]"), STEP),
    (("logger=wandb", "logger.mode=disabled"), WANDB),
    *(((f"data={name}", "data.num_classes=2", "recipe=digits"), table) for name, table in OF_DATA.items()),
]
FOLDER = ("data=imagefolder", "model=timm", "model.name=test_resnet", "recipe=digits", "data.num_workers=0")
# More of them than one chart of settings holds, so most are tried on a configuration that is composed once.
EVERY = [((), BAD), *OTHER_GROUPS]
PHOTO_GROUPS, PHOTO_MODEL = [groups for groups, _ in EVERY[4:]], ("model=timm", "model.name=test_resnet")


def require_named(message: str, bad: str) -> None:
    """The mistake is reported in one line by its key."""
    key = bad.partition("=")[0]
    assert "\n" not in message, bad
    assert any(name in message for name in (key, *ALSO.get(key, ()))), (bad, message)


@cache
def composed(*overrides: str) -> RunConfig:
    return compose_config(overrides)


def changed(config: RunConfig, bad: str) -> RunConfig:
    return override(config, [bad.replace(":", ": ").replace(",", ", ")])


@pytest.mark.parametrize(("groups", "key"), [(groups, key) for groups, table in EVERY for key in table])
def test_a_bad_setting_is_one_line_that_names_it(groups: tuple[str, ...], key: str) -> None:
    for value in dict(EVERY)[groups][key]:
        if (bad := f"{key}={value}") not in LATER:
            with pytest.raises(UserError) as caught:
                changed(composed(*(USUAL if groups not in PHOTO_GROUPS else PHOTO_MODEL), *groups), bad)
            require_named(str(caught.value), bad)


@pytest.mark.parametrize("bad", sorted(bad for bad in LATER if "data.root" not in bad))
def test_what_the_schema_cannot_know_is_refused_before_the_run_directory_is_made(bad: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        train(changed(composed(*USUAL), bad), tmp_path / "run")
    require_named(str(caught.value), bad)
    assert not (tmp_path / "run").exists(), bad


def require_refused_at_the_command_line(noah: Noah, *words: str) -> None:
    """The last word is the mistake."""
    answer = noah("train", *words, "hydra.run.dir=run")
    assert (answer.status, answer.err[:6]) == (2, "noah: "), (words[-1], answer)
    require_named(answer.err.removesuffix("\n"), words[-1])
    assert not Path("run").exists(), words[-1]


def one_of_each_group() -> list[tuple[tuple[str, ...], str]]:
    """The last of the bad values of the first setting of each group."""
    first: dict[tuple[tuple[str, ...], str], str] = {}
    for groups, table in EVERY[:4]:
        for key, values in table.items():
            first.setdefault((groups, key.rpartition(".")[0]), f"{key}={values[-1]}")
    return [(groups, bad) for (groups, _), bad in first.items()]


@pytest.mark.parametrize(("groups", "bad"), one_of_each_group())
def test_the_command_ends_with_that_line(noah: Noah, groups: tuple[str, ...], bad: str) -> None:
    require_refused_at_the_command_line(noah, *USUAL, *groups, bad)


@pytest.mark.parametrize(
    "bad",
    ["trainer.accumulate_grad_batches=5", "trainer.num_nodes=5", "trainer.devices=5", "recipe.batch_size=0", "sed=1"],
)
def test_the_command_names_what_does_not_divide(noah: Noah, bad: str) -> None:
    require_refused_at_the_command_line(noah, *USUAL, bad)


@pytest.mark.parametrize("root", PHOTOS["data.root"][1:])
def test_the_command_names_a_bad_root(noah: Noah, root: str) -> None:
    require_refused_at_the_command_line(noah, *FOLDER, f"data.root={root}")


@pytest.mark.slow
@pytest.mark.parametrize(("groups", "bad"), [(groups, bad) for groups, table in EVERY[:4] for bad in cases(table)])
def test_every_bad_setting_ends_the_command_with_that_line(noah: Noah, groups: tuple[str, ...], bad: str) -> None:
    require_refused_at_the_command_line(noah, *USUAL, *groups, bad)


# --- nothing is left out, and nothing legitimate is refused


def settings_of(config: RunConfig) -> dict[str, str]:
    """Every setting that is not a group, with the values that it may have."""
    fields = known_settings(RunConfig, config.model_dump())
    return {
        key: allowed(field)
        for key, field in fields
        if key not in ("head", "data", "logger")
        and not (isinstance(field.annotation, type) and issubclass(field.annotation, Group))
    }


@pytest.mark.parametrize(
    ("groups", "tables"),
    [
        ((*USUAL, "head=gap"), [BAD, GAP, STEP]),
        ((*USUAL, "logger=tensorboard"), [BAD, STEP]),
        ((*USUAL, "logger=wandb"), [BAD, STEP, WANDB]),
        (("data=imagefolder", "data.num_classes=2"), [BAD, STEP, OF_DATA["imagefolder"]]),
        *((("data=" + name,), [BAD, STEP, MNIST]) for name in ("mnist", "fashion_mnist")),
        (("data=imagenet",), [BAD, STEP, OF_DATA["imagenet"]]),
        (("data=packed", "data.num_classes=2"), [BAD, STEP, OF_DATA["packed"]]),
        (("data=coco",), [BAD, STEP, OF_DATA["coco"]]),
        (("data=digits_multilabel",), [BAD, STEP, OF_DATA["digits_multilabel"]]),
    ],
)
def test_every_setting_has_a_range_and_bad_values_here(
    groups: tuple[str, ...], tables: list[dict[str, tuple[str, ...]]]
) -> None:
    settings = settings_of(composed(*groups))
    assert not [key for key, values in settings.items() if values in ("", "any value")]
    keys = {key for key in settings if not key.startswith("data.augment.")}
    assert keys - set().union(*tables) == set()


def test_a_changed_bound_changes_the_message() -> None:
    class Shorter(RecipeSettings):
        epochs: Annotated[int, Field(ge=1, le=7)]

    recipe = composed(*USUAL).recipe.model_dump()
    assert parse(RecipeSettings, recipe | {"epochs": 8}).epochs == 8
    with pytest.raises(ConfigError, match=r"^recipe\.epochs=8 must be an integer from 1 to 7$"):
        parse(Shorter, recipe | {"epochs": 8}, "recipe")


def test_every_setting_and_its_range_is_in_the_docs_and_in_the_help(noah: Noah) -> None:
    """docs/settings.md is written by ``noah settings --markdown``."""
    table = noah("settings", "--markdown").out
    documented = (config_dir().parent / "docs" / "settings.md").read_text()
    assert table in documented
    for groups in ((), ("logger=wandb",), ("data=packed", "data.num_classes=2"), ("data=mnist",), ("head=gap",)):
        for key, values in settings_of(composed(*groups)).items():
            if key.rpartition(".")[2] != "name" and not key.startswith("data.augment."):
                assert any(f"| {key}" in line and f"| {values} |" in line for line in table.splitlines()), key
    assert noah("settings", "recipe.emma").status == 2


def test_a_run_recorded_before_a_setting_existed_has_its_default() -> None:
    content = composed(*USUAL).model_dump()
    del content["trainer"]["compile"], content["plugins"]
    assert parse(RunConfig, content) == composed(*USUAL)
    del content["recipe"]["epochs"]  # which has none
    with pytest.raises(ConfigError, match=r"^recipe\.epochs is missing"):
        parse(RunConfig, content)


@pytest.mark.parametrize(
    ("group", "file"),
    [
        ("trainer", "trainer/default.yaml"),
        ("model", "model/timm.yaml"),
        ("data", "data/digits.yaml"),
        ("data", "data/imagefolder.yaml"),
        ("data", "data/imagenet.yaml"),
        ("data", "data/packed.yaml"),
        ("data", "data/digits_multilabel.yaml"),
        ("data", "data/coco.yaml"),
        ("head", "head/noah.yaml"),
        ("logger", "logger/wandb.yaml"),
        ("recipe", "recipe/plain.yaml"),
    ],
)
def test_the_defaults_of_the_schema_are_those_of_the_files(group: str, file: str) -> None:
    content = yaml.safe_load((config_dir() / file).read_text())
    fields = dict(known_settings(RunConfig, {group: content}))

    def check(values: dict[str, object], prefix: str) -> None:
        for name, value in values.items():
            if isinstance(value, dict) and value:
                check(value, f"{prefix}{name}.")
            elif (
                value is not None
                and "$" not in str(value)
                and "?" not in str(value)
                and name not in ("defaults", "lr_batch")
            ):
                default = fields[f"{prefix}{name}"].get_default(call_default_factory=True)
                assert default == value or default is PydanticUndefined, f"{prefix}{name}"

    check(content, f"{group}.")


@pytest.mark.parametrize(
    "words",
    [
        ["trainer.max_epochs=1"],  # the milestones of the recipe come later
        ["trainer.limit_train_batches=0.5", "trainer.limit_val_batches=1", "trainer.num_sanity_val_steps=-1"],
        ["trainer.precision=16", "trainer.deterministic=warn", "trainer.benchmark=true"],
        ["trainer.devices=[0]", "trainer.strategy=ddp_find_unused_parameters_true", "trainer.accelerator=gpu"],
        ["head.dropout=0", "recipe.optimizer.lr=1", "recipe.schedule.milestones=[30,60,99.5]", "seed=4294967295"],
        ["recipe.schedule.name=cosine", "recipe.schedule.warmup_epochs=100", "recipe.ema=0.5"],
        ["recipe=deit", "model.weights=/some/file", "model.class_token=true", "head.head_split=false"],
        ["logger=wandb", "logger.tags=[first,2]", "attention.picture_every_n_epochs=0"],
    ],
)
def test_what_is_legitimate_passes(words: list[str]) -> None:
    compose_config(words)
