"""Mixed batches against timm's own classes called next to ours and against formulas written out here."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.data.mixup import Mixup
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor, nn

from conftest import TINY, Answer
from noah_lightning.config.schema import MixingSettings, OptimizerSettings, ScheduleSettings
from noah_lightning.errors import ConfigError
from noah_lightning.task import ClassificationTask
from noah_lightning.task.classification import BatchMixing
from test_task import loader, make_trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.. is deprecated"),
]

Noah = Callable[..., Answer]
CLASSES, BATCH = 7, 6


def a_batch(seed: int = 0, side: int = 8) -> tuple[Tensor, Tensor]:
    """Images, and labels of which no image shares its mirror's."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(BATCH, 3, side, side, generator=generator), torch.tensor([0, 3, 6, 5, 1, 2])


def own_share(targets: Tensor, labels: Tensor) -> float:
    """The share of itself that every image keeps, read off unsmoothed targets."""
    shares = targets[range(BATCH), labels]
    assert (shares == shares[0]).all()
    return float(shares[0])


def a_task(mixing: MixingSettings, label_smoothing: float = 0.0, lr: float = 0.1) -> ClassificationTask:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, CLASSES))
    optimizer = OptimizerSettings(name="sgd", lr=lr)
    task = ClassificationTask(model, optimizer, ScheduleSettings(), label_smoothing, mixing, CLASSES)
    task.log = lambda *_, **__: None  # type: ignore[method-assign]  # Lightning's own logging needs a trainer
    return task


# --- one batch


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("settings", [(0.8, 1.0, 0.5), (0.5, 0.0, 0.5), (0.0, 1.0, 0.0), (0.8, 1.0, 0.2)])
def test_batches_are_mixed_as_timm_mixes_them(settings: tuple[float, float, float], smoothing: float) -> None:
    mixup, cutmix, switch = settings
    timms = Mixup(mixup, cutmix, None, 1.0, switch, "batch", True, smoothing, CLASSES)
    ours = BatchMixing(MixingSettings(mixup=mixup, cutmix=cutmix, switch=switch), CLASSES, smoothing)
    np.random.seed(5)
    expected = [timms(*a_batch(seed)) for seed in range(20)]
    np.random.seed(5)
    for seed, (images, targets) in enumerate(expected):
        mixed, soft = ours(*a_batch(seed))
        assert torch.equal(mixed, images)
        assert torch.equal(soft, targets)


def test_mixup_blends_every_image_and_its_target_with_its_mirrors() -> None:
    mix = BatchMixing(MixingSettings(mixup=1.0), CLASSES, 0.0)
    np.random.seed(0)
    for seed in range(10):
        images, labels = a_batch(seed)
        mixed, targets = mix(images, labels)
        share = own_share(targets, labels)
        one_hot = F.one_hot(labels, CLASSES)
        torch.testing.assert_close(mixed, share * images + (1 - share) * images.flip(0))
        torch.testing.assert_close(targets, share * one_hot + (1 - share) * one_hot.flip(0))


def test_cutmix_pastes_a_rectangle_whose_share_of_the_area_is_its_share_of_the_target() -> None:
    mix = BatchMixing(MixingSettings(cutmix=1.0), CLASSES, 0.0)
    np.random.seed(0)
    for seed in range(10):
        images, labels = a_batch(seed)
        mixed, targets = mix(images, labels)
        own, others = mixed == images, mixed == images.flip(0)
        assert (own ^ others).all()
        assert (own == own[0, 0]).all()  # the same rectangle in every image and color
        rows, columns = others[0, 0].nonzero(as_tuple=True)
        if len(rows):
            height, width = rows.max() - rows.min() + 1, columns.max() - columns.min() + 1
            assert len(rows) == height * width
        assert own_share(targets, labels) == pytest.approx(own[0, 0].float().mean().item(), abs=1e-6)


@pytest.mark.parametrize(("mixup", "cutmix", "switch", "pasted"), [(1, 1, 0.0, 0), (1, 1, 1.0, 1), (1, 1, 0.3, 0.3)])
def test_switch_is_the_share_of_batches_that_cutmix_gets(
    mixup: float, cutmix: float, switch: float, pasted: float
) -> None:
    mix = BatchMixing(MixingSettings(mixup=mixup, cutmix=cutmix, switch=switch), CLASSES, 0.0)
    images, labels = a_batch()
    np.random.seed(0)
    own_pixels = [(mix(images, labels)[0] == images).any().item() for _ in range(400)]
    assert np.mean(own_pixels) == pytest.approx(pasted, abs=0.09)  # four standard deviations


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_shares_follow_the_beta_distribution_and_every_batch_is_mixed(alpha: float) -> None:
    mix = BatchMixing(MixingSettings(mixup=alpha), CLASSES, 0.0)
    images, labels = a_batch()
    np.random.seed(0)
    shares = np.array([own_share(mix(images, labels)[1], labels) for _ in range(2000)])
    assert shares.mean() == pytest.approx(0.5, abs=0.05)
    assert shares.var() == pytest.approx(0.25 / (2 * alpha + 1), rel=0.1)
    assert (shares == 1).mean() < 0.05  # of Beta(0.2, 0.2), some round to 1


def test_the_batch_itself_is_left_alone() -> None:
    images, labels = a_batch()
    for settings in (MixingSettings(mixup=1.0), MixingSettings(cutmix=1.0)):
        np.random.seed(0)
        mixed, _ = BatchMixing(settings, CLASSES, 0.0)(images, labels)
        assert not torch.equal(mixed, images)
    assert torch.equal(images, a_batch()[0])
    assert torch.equal(labels, a_batch()[1])


def test_an_odd_batch_is_refused_in_one_line() -> None:
    images, labels = a_batch()
    with pytest.raises(ConfigError, match=r"^recipe\.mixing needs an even number of images per batch, got 5; .*$"):
        BatchMixing(MixingSettings(mixup=1.0), CLASSES, 0.0)(images[:5], labels[:5])


# --- a step


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_the_loss_is_timms_cross_entropy_with_soft_smoothed_targets(smoothing: float) -> None:
    """It is the smoothing's only way into a mixed batch, and it goes in once."""
    task = a_task(MixingSettings(mixup=0.8, cutmix=1.0), smoothing)
    images, labels = a_batch()
    np.random.seed(2)
    loss = task.training_step((images, labels), 0)
    np.random.seed(2)
    mixed, plain = Mixup(0.8, 1.0, label_smoothing=0, num_classes=CLASSES)(images.clone(), labels)
    targets = (1 - smoothing) * plain + smoothing / CLASSES
    torch.testing.assert_close(loss, SoftTargetCrossEntropy()(task.model(mixed), targets))


def test_nothing_is_mixed_or_drawn_with_both_at_zero() -> None:
    task = a_task(MixingSettings(mixup=0.0, cutmix=0.0, switch=0.5))
    images, labels = a_batch()
    np.random.seed(0)
    before = np.random.get_state()[1].tolist()
    loss = task.training_step((images[:5], labels[:5]), 0)
    torch.testing.assert_close(loss, F.cross_entropy(task.model(images[:5]), labels[:5]))
    assert np.random.get_state()[1].tolist() == before


def test_training_accuracy_counts_each_images_own_label() -> None:
    """Of two blended one-hot images, the model names the one with the larger share: all are right, or none."""
    task = ClassificationTask(
        nn.Flatten(), OptimizerSettings(name="sgd", lr=0.1), ScheduleSettings(), 0.0, MixingSettings(mixup=0.5), 12
    )
    task.log = lambda *_, **__: None  # type: ignore[method-assign]
    labels = torch.tensor([0, 3, 6, 5, 1, 2])
    images = F.one_hot(labels, 12).float().reshape(BATCH, 3, 2, 2)
    np.random.seed(0)
    expected = 0
    for _ in range(20):
        state = np.random.get_state()
        share = own_share(BatchMixing(MixingSettings(mixup=0.5), 12, 0.0)(images, labels)[1], labels)
        np.random.set_state(state)
        task.training_step((images, labels), 0)
        expected += BATCH * (share > 0.5)
    assert 0 < expected < 20 * BATCH
    assert task.train_score.compute()[:2] == (20 * BATCH, expected)


def test_validation_neither_mixes_nor_smooths_nor_draws() -> None:
    images, labels = a_batch()
    plain, mixing = a_task(MixingSettings()), a_task(MixingSettings(mixup=0.8, cutmix=1.0), 0.3)
    np.random.seed(0)
    before = np.random.get_state()[1].tolist()
    for task in (plain, mixing):
        make_trainer().validate(task, loader(images[:5], labels[:5]), verbose=False)  # odd, and no matter
    assert mixing.validated == plain.validated
    assert np.random.get_state()[1].tolist() == before


# --- a run

MIXED = [*TINY, "head=gap", "trainer.max_epochs=1", "recipe.mixing.mixup=0.8", "recipe.mixing.cutmix=1.0"]


@pytest.mark.parametrize(
    "odd",
    [["recipe.batch_size=7"], ["data.train_images=31"]],
    ids=["batch", "set below one batch"],
)
def test_odd_batches_are_refused_before_a_run_begins(noah: Noah, tmp_path: Path, odd: list[str]) -> None:
    answer = noah("train", *MIXED, *odd)
    assert answer.status == 2
    assert answer.err.startswith("noah: recipe.mixing needs an even number of images per batch, got ")
    assert answer.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_odd_batch_size_above_an_even_set_is_no_odd_batch(noah: Noah) -> None:
    answer = noah("train", *MIXED, "data.train_images=40", "recipe.batch_size=41")
    assert answer.status == 0, answer.err


def test_the_same_seed_mixes_the_same(noah: Noah) -> None:
    def weights(run: str, *overrides: str) -> dict[str, Tensor]:
        answer = noah("train", *MIXED, *overrides, f"hydra.run.dir={run}")
        assert answer.status == 0, answer.err
        return torch.load(f"{run}/checkpoints/last.ckpt", weights_only=True)["state_dict"]

    first, again, plain = weights("a"), weights("b"), weights("c", "recipe.mixing.mixup=0", "recipe.mixing.cutmix=0")
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], plain[name]) for name in first)
