"""Multi-label training: losses against NumPy, mean average precision against scikit-learn, and complete runs."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.seed import isolate_rng
from sklearn.metrics import average_precision_score
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import faults
from conftest import Answer
from noah_lightning.callbacks.progress import EpochReport
from noah_lightning.config.compose import compose_config
from noah_lightning.config.schema import OptimizerSettings, RecipeSettings, ScheduleSettings
from noah_lightning.data import create_data
from noah_lightning.data.digits import load_glyphs, split_sources
from noah_lightning.data.digits_multilabel import draw_digits
from noah_lightning.errors import ConfigError
from noah_lightning.task import ClassificationTask, make_loss, make_objective
from noah_lightning.task.losses import make_loss_sum
from noah_lightning.task.multilabel import Precision, PrecisionCounter, mean_average_precision
from test_resume import interrupted_after
from test_task import make_trainer

Noah = Callable[..., Answer]
TINY = [
    *("experiment=demo_multilabel", "model=timm", "model.name=test_resnet", "data.train_images=96"),
    *("data.val_images=50", "recipe.batch_size=32", "trainer.max_epochs=2", "trainer.log_every_n_steps=2"),
]
MULTILABEL = ["data=digits_multilabel", "recipe=plain"]


def recipe(*words: str) -> RecipeSettings:
    return compose_config(["experiment=demo", "recipe=plain", *words]).recipe


def batch(images: int, classes: int, seed: int = 0, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(images, classes, generator=generator)
    return logits, (torch.rand(images, classes, generator=generator) < 0.3).float()


# --- losses


def asymmetric_by_definition(z: np.ndarray, y: np.ndarray, gamma_neg: float, gamma_pos: float, clip: float) -> float:
    """Equations 5 to 7 of arXiv 2009.14119, summed over the classes and averaged over the images."""
    p = 1 / (1 + np.exp(-z))
    shifted = np.maximum(p - clip, 0)
    positive, negative = (1 - p) ** gamma_pos * np.log(p), shifted**gamma_neg * np.log(1 - shifted)
    return float(-(y * positive + (1 - y) * negative).sum(axis=1).mean())


def cross_entropy_by_definition(z: np.ndarray, y: np.ndarray) -> float:
    return float(np.mean(np.log1p(np.exp(-np.abs(z))) + np.maximum(z, 0) - z * y))


SETTINGS = [(4.0, 0.0, 0.05), (4.0, 1.0, 0.05), (2.0, 2.0, 0.0), (1.0, 0.0, 0.2), (0.0, 0.0, 0.0)]
BY_DEFINITION: dict[str, tuple[list[str], Callable[[np.ndarray, np.ndarray], float]]] = {
    "bce": (["recipe.loss=bce"], cross_entropy_by_definition),
    **{
        f"asymmetric {one}": (
            [
                "recipe.loss=asymmetric",
                f"recipe.asymmetric.gamma_neg={one[0]}",
                f"recipe.asymmetric.gamma_pos={one[1]}",
                f"recipe.asymmetric.clip={one[2]}",
            ],
            lambda z, y, one=one: asymmetric_by_definition(z, y, *one),
        )
        for one in SETTINGS
    },
}


@pytest.mark.parametrize("name", BY_DEFINITION)
def test_losses_and_their_gradients_are_those_of_the_definition(name: str) -> None:
    words, definition = BY_DEFINITION[name]
    logits, labels = batch(6, 5, scale=1)
    z, y = logits.double().numpy(), labels.numpy()
    logits.requires_grad_()
    loss = make_loss(recipe(*words))(logits, labels)
    assert loss.item() == pytest.approx(definition(z, y), rel=1e-6)
    loss.backward()
    assert logits.grad is not None
    expected, step = np.zeros_like(z), 1e-6
    for index in np.ndindex(*z.shape):
        up, down = z.copy(), z.copy()
        up[index] += step
        down[index] -= step
        expected[index] = (definition(up, y) - definition(down, y)) / (2 * step)
    np.testing.assert_allclose(logits.grad.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("name", BY_DEFINITION)
def test_gradients_are_finite_for_any_logit(name: str) -> None:
    logits = torch.tensor([[-1000.0, -30, 0, 30, 1000], [1000, 30, 0, -30, -1000]], requires_grad=True)
    labels = torch.tensor([[1.0, 1, 1, 1, 1], [0, 0, 0, 0, 0]])
    loss = make_loss(recipe(*BY_DEFINITION[name][0]))(logits, labels)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_cross_entropy_is_torch_s_to_the_bit() -> None:
    logits, labels = batch(6, 5)[0], torch.tensor([0, 4, 2, 2, 1, 3])
    smoothed = make_loss(recipe("recipe.label_smoothing=0.1"))
    assert torch.equal(smoothed(logits, labels), F.cross_entropy(logits, labels, label_smoothing=0.1))
    mixed, soft = make_loss(recipe("recipe.label_smoothing=0.1", "recipe.mixing.mixup=0.8")), logits.softmax(dim=1)
    assert torch.equal(mixed(logits, soft), F.cross_entropy(logits, soft))


@pytest.mark.parametrize("loss", ["bce", "asymmetric"])
def test_padding_has_no_loss(loss: str) -> None:
    logits, labels = batch(6, 5)
    mean, total = make_loss(recipe(f"recipe.loss={loss}")), make_loss_sum(recipe(f"recipe.loss={loss}"))
    assert total(logits, labels).item() == pytest.approx(6 * mean(logits, labels).item(), rel=1e-6)
    padded = torch.cat([labels[:4], torch.full((2, 5), -1.0)])
    assert total(logits, padded).item() == pytest.approx(4 * mean(logits[:4], labels[:4]).item(), rel=1e-6)


# --- mean average precision


def by_sklearn(logits: Tensor, labels: Tensor) -> float:
    return 100 * float(average_precision_score(labels.numpy(), logits.double().numpy(), average="macro"))


@pytest.mark.parametrize(("images", "classes", "scale"), [(7, 3, 3), (200, 1, 3), (1000, 20, 30), (40_000, 4, 1)])
def test_mean_average_precision_is_scikit_learn_s(images: int, classes: int, scale: float) -> None:
    logits, labels = batch(images, classes, scale=scale)
    labels[0] = 1
    assert mean_average_precision(logits, labels) == pytest.approx(by_sklearn(logits, labels), abs=1e-4)  # percent


def test_equal_logits_and_logits_that_look_like_probabilities() -> None:
    logits, labels = batch(300, 5)
    tied = logits.round()
    assert mean_average_precision(tied, labels) == pytest.approx(by_sklearn(tied, labels), abs=1e-4)
    small = logits.sigmoid()  # torchmetrics does not apply the sigmoid to values between 0 and 1
    counter = PrecisionCounter()
    for part in (small[:100], 10 * logits[100:200], small[200:]):
        counter.update(part, labels[:100], torch.tensor(0.0))
    mixed, repeated = torch.cat([small[:100], 10 * logits[100:200], small[200:]]), labels[:100].repeat(3, 1)
    assert counter.compute().map == pytest.approx(by_sklearn(mixed, repeated), abs=1e-4)


def test_high_logits_are_not_tied() -> None:
    logits = torch.tensor([[18.0], [19.0], [20.0], [-120.0], [-130.0]])  # sigmoids of 1 and 0 in float32
    labels = torch.tensor([[0.0], [1.0], [0.0], [1.0], [0.0]])
    assert mean_average_precision(logits, labels) == pytest.approx(by_sklearn(logits, labels), abs=1e-4)


def test_classes_without_positives_are_left_out() -> None:
    logits, labels = batch(50, 4)
    labels[:, 2] = 0
    assert mean_average_precision(logits, labels) == pytest.approx(
        by_sklearn(logits[:, [0, 1, 3]], labels[:, [0, 1, 3]]), abs=1e-4
    )
    assert mean_average_precision(logits, torch.zeros(50, 4)) == 0


def test_padding_does_not_count() -> None:
    logits, labels = batch(30, 4)
    counter = PrecisionCounter()
    counter.update(logits[:20], labels[:20], torch.tensor(6.0))
    counter.update(logits[20:], torch.cat([labels[20:25], torch.full((5, 4), -1.0)]), torch.tensor(4.0))
    score = counter.compute()
    assert (score.images, score.loss) == (25, pytest.approx(0.4))
    assert score.map == pytest.approx(by_sklearn(logits[:25], labels[:25]), abs=1e-4)


# --- the task


def toy_task(images: int = 22, nonfinite: str = "stop") -> tuple[ClassificationTask, DataLoader]:
    """A model that returns its images as logits, times a parameter."""
    logits, labels = batch(images, 4)

    class Times(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.ones(()))

        def forward(self, images: Tensor) -> Tensor:
            return self.factor * images.flatten(1)

    objective = make_objective(recipe("recipe.loss=bce"))
    optimizer = OptimizerSettings(name="sgd", lr=0.0)
    task = ClassificationTask(Times(), optimizer, ScheduleSettings(), nonfinite=nonfinite, objective=objective)
    return task, DataLoader(TensorDataset(logits[:, :, None, None], labels), batch_size=4)


@pytest.mark.filterwarnings("ignore")
def test_the_task_logs_the_metrics_of_all_images() -> None:
    task, loader = toy_task()
    report = EpochReport(Precision)
    trainer = make_trainer(callbacks=[report])
    trainer.fit(task, loader, loader)
    logits, labels = (values.flatten(1) for values in loader.dataset.tensors)
    loss = F.binary_cross_entropy_with_logits(logits, labels).item()
    assert task.validated == (22, pytest.approx(by_sklearn(logits, labels), abs=1e-4), pytest.approx(loss, rel=1e-5))
    assert trainer.callback_metrics["val/map"].item() == pytest.approx(task.validated.map)
    assert trainer.callback_metrics["val/loss"].item() == pytest.approx(loss, rel=1e-5)
    assert task.predicted is not None
    assert torch.equal(task.predicted[0], labels)
    assert torch.equal(task.predicted[1], logits)
    assert report.best.score == task.validated
    resumed = EpochReport(Precision)
    resumed.load_state_dict(report.state_dict())
    assert resumed.best == report.best


@pytest.mark.filterwarnings("ignore")
def test_a_skipped_batch_does_not_count() -> None:
    task, loader = toy_task(nonfinite="skip")
    loader.dataset.tensors[0][5] = float("inf")  # in the second of six batches; inf * 0 in the loss
    counted = []
    task.on_train_epoch_end = lambda: counted.append(task.train_score.compute())  # type: ignore[method-assign]
    make_trainer(num_sanity_val_steps=0, limit_val_batches=0).fit(task, loader)
    assert counted[0].images == 18
    assert np.isfinite(counted[0].loss)


# --- settings that do not go together


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["data=digits_multilabel"], "recipe.loss=cross_entropy is for images of one class each"),
        (["data=digits", "recipe.loss=bce"], "recipe.loss=bce is for multi-label data"),
        ([*MULTILABEL, "recipe.loss=bce", "recipe.label_smoothing=0.1"], "set recipe.label_smoothing=0"),
        ([*MULTILABEL, "recipe.loss=asymmetric", "recipe.mixing.cutmix=1"], "set recipe.mixing.mixup=0"),
        ([*MULTILABEL, "recipe.loss=focal"], "recipe.loss='focal' must be one of cross_entropy, bce, asymmetric"),
        ([*MULTILABEL, "recipe.asymmetric.gamma_neg=0.5"], "gamma_neg=0.5 must be 0, or a number of at least 1"),
        ([*MULTILABEL, "data.max_digits=5"], "data.max_digits=5 must be at most 4"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(noah: Noah, words: list[str], says: str) -> None:
    answer = noah("train", "experiment=demo", *words, "hydra.run.dir=run")
    assert (answer.status, answer.err.count("\n")) == (2, 1)
    assert says in answer.err
    assert not Path("run").exists()


def test_the_demo_of_single_labels_refuses_others(noah: Noah) -> None:
    answer = noah("demo", "data=digits_multilabel", "recipe.loss=bce")
    assert (answer.status, answer.err.count("\n")) == (2, 1)
    assert "for multi-label data use noah train" in answer.err


# --- complete runs


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from conftest import call_noah

    path = tmp_path_factory.mktemp("multilabel") / "run"
    with isolate_rng():
        answer = call_noah("train", *TINY, "recipe.ema=0.9", f"hydra.run.dir={path}")
    assert answer.status == 0, answer.err
    return path


def test_a_run_is_judged_by_its_mean_average_precision(run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    assert not {"correct", "correct_top5", "ema_correct", "ema_correct_top5"} & results.keys()
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert "train/top1" not in rows[0]
    for prefix in ("", "ema_"):
        values = [float(row[f"val/{prefix}map"]) for row in rows if row[f"val/{prefix}map"]]
        assert results[f"{prefix}map"] == pytest.approx(max(values), rel=1e-6)
        assert results[f"{prefix}best_epoch"] == 1 + values.index(max(values))
    with np.load(run / "predictions.npz") as arrays:
        labels, logits = arrays["labels"], arrays["logits"]
    assert 100 * average_precision_score(labels, logits) == pytest.approx(results["map"], abs=1e-4)
    text = (run / "train.log").read_text()
    assert f"val mAP {results['map']:.3f} % (50 images)" in text
    assert f"ema mAP {results['ema_map']:.3f} %" in text


@pytest.mark.parametrize("words", [[], ["--ema"]])
def test_evaluates_to_the_same_figure(noah: Noah, run: Path, words: list[str]) -> None:
    results = json.loads((run / "results.json").read_text())
    answer = noah("evaluate", str(run), *words)
    assert answer.status == 0, answer.err
    assert f"val mAP {results['ema_map' if words else 'map']:.3f} % (50 images)  loss" in answer.out


def test_a_run_does_not_evaluate_on_single_labels(noah: Noah, run: Path) -> None:
    answer = noah("evaluate", str(run), "recipe.loss=cross_entropy")
    assert (answer.status, answer.err.count("\n")) == (2, 1)
    assert "data=digits_multilabel is multi-label" in answer.err


def test_an_interrupted_run_is_the_same_to_the_bit(noah: Noah, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the second epoch, so that the best epoch and the training loss so far are in the checkpoint."""
    command = ("train", *TINY, "recipe.ema=0.9", "hydra.run.dir=run")
    assert interrupted_after(noah, monkeypatch, 4, command=command).status == 130
    answer = noah("resume", "run")
    assert answer.status == 0, answer.err
    assert faults.differences(run, Path("run")) == []


def test_a_sweep_is_led_by_it(run: Path) -> None:
    from noah_lightning.run_dir import RunDir

    results = RunDir(run).results()
    assert results.multilabel
    assert results.score == results.map
    with pytest.raises(ConfigError, match="mean average precision"):
        RunDir(run).predictions()


# --- digits


def test_the_label_is_the_set_of_the_digits_and_they_do_not_overlap() -> None:
    data = create_data("digits_multilabel", train_images=40, val_images=300, num_fragments=0)
    data.setup("fit")
    assert data.multilabel
    glyphs, classes = load_glyphs(24)
    _, pool = split_sources(classes, 0)
    sources, corners = draw_digits(pool, 300, 2, data.settings)
    numbers = set()
    for i in range(300):
        image, label = data.val_dataset[i]
        shown = sources[i] >= 0
        numbers.add(int(shown.sum()))
        assert np.flatnonzero(label.numpy()).tolist() == sorted(set(classes[sources[i][shown]]))
        covered = np.zeros((64, 64), dtype=int)
        for source, (row, column) in zip(sources[i][shown], corners[i][shown], strict=True):
            covered[row : row + 24, column : column + 24] += 1
            assert np.array_equal(image[0, row : row + 24, column : column + 24].numpy(), glyphs[source])
        assert covered.max() == 1
        assert not image[0].numpy()[covered == 0].any()
    assert numbers == {1, 2, 3, 4}


def test_an_image_does_not_depend_on_the_number_of_images() -> None:
    few, many = (create_data("digits_multilabel", train_images=n, val_images=2) for n in (5, 20))
    for data in (few, many):
        data.setup("fit")
    assert torch.equal(few.train_dataset.images, many.train_dataset.images[:5])
    assert torch.equal(few.train_dataset.labels, many.train_dataset.labels[:5])
    assert not torch.equal(many.train_dataset.images[:2], many.val_dataset.images)
