"""The paper's rows: each composes, trains, and is listed with what it is."""

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml

from conftest import Answer
from noah_lightning.config.compose import config_dir
from noah_lightning.config.heads import SETTINGS
from noah_lightning.heads import head_names
from noah_lightning.models.rows import ROWS, create_row, read_row
from noah_lightning.run_dir import RunDir
from noah_lightning.tools import model_tables
from official import LARGE, MODELS, ONE_OF_EACH_KIND, every_row

Noah = Callable[..., Answer]
SMALL = ["data=digits", "data.image_size=64", "data.train_images=20", "data.val_images=10", "data.batch_size=10"]
NARROW = ("deit_tiny_075", "deit_tiny_050")  # whose released code has a layer more than was published
facts_of = cache(read_row)
TWO_STEPS = ["trainer.max_epochs=1", "trainer.limit_train_batches=2", "trainer.num_sanity_val_steps=0"]


@pytest.mark.parametrize(("row", "head"), every_row(slow=set(ROWS) - {*ONE_OF_EACH_KIND}))
def test_every_row_trains(row: str, head: str, noah: Noah) -> None:
    """Two steps with the whole recipe: mixing, average of the weights, clipping, schedule."""
    answer = noah("train", f"model={row}", f"head={head}", *SMALL, *TWO_STEPS, "hydra.run.dir=run")
    assert (answer.status, answer.err) == (0, "")
    assert "of 10)" in answer.out
    config = RunDir(Path("run")).config()
    weights = torch.load("run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
    assert any(key.startswith("ema.") for key in weights) == (config.recipe.ema is not None)


def test_the_rows_are_those_of_the_official_release() -> None:
    assert set(ROWS) == set(MODELS)
    assert len(ROWS) == 26


@pytest.mark.parametrize("row", ROWS)
def test_the_table_says_what_the_models_are(row: str) -> None:
    """The table counts without running a model; test_official.py has the counts of most models themselves."""
    facts = facts_of(row)
    assert (facts.head_num, facts.key_ratio) == (MODELS[row]["noah"]["head_num"], MODELS[row]["noah"]["key_ratio"])
    if row not in NARROW:
        assert facts.parameters == {head: MODELS[row][head]["params"] for head in ("gap", "noah")}
    if row in NARROW or row in LARGE:
        with torch.device("meta"):
            for head, count in facts.parameters.items():
                assert count == sum(p.numel() for p in create_row(row, head).parameters())


def test_a_row_takes_changes() -> None:
    head = create_row("resnet18", "noah", ["head.head_num=8", "data.num_classes=10"]).head
    assert (head.head_num, head.num_classes) == (8, 10)


def test_a_row_has_the_dropout_of_its_recipe() -> None:
    assert create_row("mobilenetv2_035", "noah").head.dropout.p == 0.2
    assert create_row("shufflenetv2_100", "noah").head.dropout.p == 0.0


# --- the commands


@pytest.fixture
def rows_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_tables, "read_row", facts_of)


@pytest.mark.usefixtures("rows_are_read_once")
def test_rows_prints_the_table(noah: Noah) -> None:
    answer = noah("rows")
    assert (answer.status, answer.err) == (0, "")
    lines = [line.split() for line in answer.out.splitlines() if line.split()[:1] and line.split()[0] in ROWS]
    assert [line[0] for line in lines] == list(ROWS)
    assert lines[1] == ["resnet50", "resnet50", "25,557,032", "25,564,032", "4", "1/8", "76.23", "77.25", "resnet"]


@pytest.mark.usefixtures("rows_are_read_once")
def test_the_documents_embed_the_table(noah: Noah) -> None:
    markdown = noah("rows", "--markdown").out.strip()
    assert markdown.count("\n") == 27
    for document in ("README.md", "docs/rows.md"):
        assert markdown in (Path(__file__).parents[1] / document).read_text(), f"noah rows --markdown > {document}"


@pytest.mark.slow
def test_the_documents_embed_the_costs(noah: Noah) -> None:
    markdown = noah("rows", "--cost", "--markdown").out.strip()
    assert markdown in (Path(__file__).parents[1] / "docs/rows.md").read_text()


def test_heads_shows_what_fits_a_row(noah: Noah) -> None:
    answer = noah("heads", "resnet50", "--num-classes", "100")
    assert (answer.status, answer.err) == (0, "")
    assert "feature map  2048 channels × 7 × 7 = 49 positions" in answer.out
    assert "23,508,032 parameters" in answer.out
    the_papers = next(line for line in answer.out.splitlines() if "the paper's" in line)
    # (2048 + N·2) K weights and biases; (2048 K) products at each of 49 positions
    assert the_papers.split()[:4] == ["N=4", "r=1/8", f"{2048 * 100 + 8 * 100:,}", f"{2048 * 100 * 49 / 1e6:.1f}"]
    baseline = next(line for line in answer.out.splitlines() if line.split()[:1] == ["GAP"])
    assert baseline.split()[1:3] == [f"{2048 * 100 + 100:,}", "0.2"]


def test_heads_names_what_does_not_fit(noah: Noah) -> None:
    """128 channels at r = 1/8 are 16 keys and 112 values: both divide by 16; 96 at 1/8 are 12 and 84."""
    assert "impossible" not in noah("heads", "gmlp_ti16").out
    answer = noah("heads", "gmlp_ti16_075")
    assert "impossible, as they do not divide the channels: N=8 r=1/8, N=16 r=1/8, N=16 r=1/4" in answer.out
    assert not re.search(r"N=8 +r=1/8", answer.out.split("impossible")[0])


def test_heads_takes_any_model_of_timm(noah: Noah) -> None:
    answer = noah("heads", "test_vit", "--num-classes", "7")
    assert answer.status == 0
    assert "the paper's" not in answer.out


def cells(answer: Answer, head: str) -> list[str]:
    """Cells of the row of a head in a Markdown table."""
    line = next(line for line in answer.out.splitlines() if line.startswith(f"| {head} |"))
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def test_list_of_all_heads_with_source_and_cost(noah: Noah) -> None:
    answer = noah("heads", "--list", "--markdown")
    assert (answer.status, answer.err) == (0, "")
    listed = [line.split()[1] for line in answer.out.splitlines() if line.startswith("| ")][2:]
    assert listed == ["gap", "noah", *(name for name in head_names() if name != "noah")]
    for head in listed:
        assert all(cells(answer, head)[1:3])  # paper and equation
    # of resnet18's 512 x 7 x 7 features and 1000 classes: weights and biases; products
    assert cells(answer, "gap")[3:5] == ["513,000", f"{512 * 1000 / 1e6:.1f}"]
    assert cells(answer, "csra")[3:5] == ["512,000", f"{512 * 1000 * 49 / 1e6:.1f}"]
    assert cells(answer, "noah")[3:5] == ["520,000", f"{512 * 1000 * 49 / 1e6:.1f}"]
    assert cells(answer, "map")[3] == "3,664,872"
    # values and keys of 49 positions, attention and its sum, query, projection, MLP, classifier
    products = 2 * 49 * 512**2 + 2 * 49 * 512 + 2 * 512**2 + 8 * 512**2 + 512 * 1000
    assert cells(answer, "map")[4] == f"{products / 1e6:.1f}"
    assert all(cells(answer, head)[5].endswith(" MiB") for head in ("gap", "noah", "map", "csra"))


def test_the_laboratory_has_all_heads() -> None:
    file = config_dir() / "experiment" / "head_lab.yaml"
    heads = yaml.safe_load(file.read_text())["hydra"]["sweeper"]["params"]["head"].split(",")
    assert sorted(heads) == sorted(SETTINGS)


def test_the_table_of_heads_is_in_the_docs(noah: Noah) -> None:
    """docs/heads.md has the table of ``noah heads --list --markdown``."""
    table = [line for line in noah("heads", "--list", "--markdown").out.splitlines() if line.startswith("|")]
    assert "\n".join(table) in (Path(__file__).parents[1] / "docs" / "heads.md").read_text()


def test_list_says_which_heads_a_model_cannot_have(noah: Noah) -> None:
    answer = noah("heads", "--list", "resnet18", "--num-classes", "10")
    assert "resnet18  image 224 × 224  10 classes" in answer.out
    assert "cls_mean does not fit: resnet18 has no class token for the head to read" in answer.out
    answer = noah("heads", "--list", "test_vit", "--num-classes", "10", "--markdown")
    assert "cls_mean does not fit" not in answer.out
    assert cells(answer, "cls_mean")[3] == f"{2 * 64 * 10 + 10:,}"


def test_list_names_what_does_not_fit_the_width(noah: Noah) -> None:
    """8 heads do not divide 386 channels, nor NOAH's 4 blocks the 193 keys and values; others fit."""
    answer = noah("heads", "--list", "csatv2", "--markdown")
    assert answer.status == 0
    assert "map does not fit: heads=8 does not divide the width 386; use 1, 2, 193, 386" in answer.out
    assert "noah does not fit: NOAH: head_num=4 does not divide the 193 key and 193 value channels" in answer.out
    assert cells(answer, "map")[1:] == ["arXiv 2106.04560", "z = u + MLP(LN(u)), u = MHA(q, x)", "", "", ""]
    assert cells(answer, "csra")[3] == "386,000"


def test_heads_as_markdown(noah: Noah) -> None:
    answer = noah("heads", "test_vit", "--markdown")
    assert answer.out.startswith("| head |  | parameters | M multiply-adds | kept per image |   |\n|")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["resnet51"], "has no model 'resnet51'; did you mean resnet51q"),
        (["resnet50", "--num-classes", "0"], "'0' is not an integer of at least 1"),
        ([], "noah heads needs a model, such as noah heads resnet18; noah heads --list prints all heads"),
    ],
)
def test_heads_refuses_what_there_is_not(noah: Noah, words: list[str], message: str) -> None:
    answer = noah("heads", *words)
    assert answer.status == 2
    assert message in answer.err
