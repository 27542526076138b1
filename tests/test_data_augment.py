"""What recipe.augment asks for and what training images undergo: crops, RandAugment, jitter, erasing, repeats."""

import math
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch.plugins.precision import Precision
from PIL import Image
from scipy.stats import binomtest, ks_2samp
from sklearn.datasets import load_sample_image
from timm.data.auto_augment import rand_augment_transform
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torchvision.transforms import ColorJitter, RandomResizedCrop

from noah_lightning.config.choices import AugmentSettings, DataSettings
from noah_lightning.config.compose import compose_config
from noah_lightning.config.parsing import parse
from noah_lightning.data import create_data
from noah_lightning.data import transforms as on_device
from noah_lightning.data.datamodule import ImageDataModule, Split
from noah_lightning.data.image import Picture
from noah_lightning.data.imagefolder import ImageFolderDataModule
from noah_lightning.data.samplers import EpochRepeat, EpochShuffle
from noah_lightning.data.transforms import RandomCrop, eval_transform, train_transform
from noah_lightning.errors import ConfigError
from test_data_folder import as_picture, assert_near

CONF = Path(__file__).parents[1] / "conf"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PIL_NAMES = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
DEIT = "rand-m9-mstd0.5-inc1"


@cache
def sample(name: str = "china.jpg") -> Image.Image:
    """A real photograph, 640 x 427 pixels."""
    return Image.fromarray(load_sample_image(name))


def seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def seeded(seed: int, size: int = 64, image: Image.Image | None = None, **settings: Any) -> Tensor:
    """What our transform makes of the photograph after seeding."""
    transform = train_transform(size, AugmentSettings(**settings), MEAN)
    seed_all(seed)
    return transform(as_picture(image or sample()))


def as_image(pixels: Tensor) -> Image.Image:
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def crop_and_flip(seed: int, size: int, image: Image.Image, aspect: tuple[float, float], kind: str) -> Image.Image:
    """The same by hand, with PIL; leaves the generators where the next step finds them."""
    seed_all(seed)
    top, left, height, width = RandomResizedCropAndInterpolation.get_params(image, (0.08, 1.0), aspect)
    if kind == "random":
        kind = random.choice(("bilinear", "bicubic"))
    image = image.crop((left, top, left + width, top + height)).resize((size, size), PIL_NAMES[kind])
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if torch.rand(1) < 0.5 else image


def box_figures(boxes: list[tuple[int, int, int, int]]) -> dict[str, np.ndarray]:
    """Of boxes (top, left, height, width)."""
    top, left, height, width = np.array(boxes).T
    return {
        "top": top,
        "left": left,
        "height": height,
        "width": width,
        "area": height * width,
        "aspect": width / height,
    }


# --- settings


def test_the_defaults_are_the_plain_recipe() -> None:
    plain = yaml.safe_load((CONF / "recipe" / "plain.yaml").read_text())["augment"]
    assert parse(AugmentSettings, plain) == AugmentSettings()
    assert plain.keys() == AugmentSettings.model_fields.keys()


@pytest.mark.parametrize("recipe", ["deit", "mlp"])
def test_the_recipes_are_understood(recipe: str) -> None:
    given = yaml.safe_load((CONF / "recipe" / f"{recipe}.yaml").read_text())["augment"]
    settings = parse(AugmentSettings, given, "recipe.augment")
    for name, value in given.items():
        assert getattr(settings, name) == value


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("crop_aspect", [0.75], "numbers above 0"),
        ("crop_aspect", [4 / 3, 3 / 4], "numbers above 0"),
        ("crop_aspect", [0, 1], "numbers above 0"),
        ("crop_aspect", [1, math.inf], "numbers above 0"),
        ("crop_aspect", ["a", "b"], "numbers above 0"),
        ("crop_aspect", 1, "numbers above 0"),
        ("interpolation", "lanczos", "one of bilinear, bicubic, random"),
        ("interpolation", None, "one of bilinear, bicubic, random"),
        ("rand_augment", "augmix-m3", "RandAugment in timm's notation, such as rand-m9-mstd0.5-inc1, or null"),
        ("rand_augment", "random-m9", "RandAugment"),
        ("rand_augment", "original", "RandAugment"),
        ("rand_augment", "", "RandAugment"),
        ("rand_augment", "rand-x9", "RandAugment"),
        ("rand_augment", "rand-m0.5", "RandAugment"),
        ("rand_augment", "rand-m9-inc", "RandAugment"),
        ("rand_augment", "rand-m9-", "RandAugment"),
        ("rand_augment", 9, "RandAugment"),
        ("rand_augment", False, "RandAugment"),
        ("color_jitter", -0.1, "a number of at least 0"),
        ("color_jitter", None, "a number of at least 0"),
        ("color_jitter", math.nan, "a number of at least 0"),
        ("color_jitter", [0.4, 0.4, 0.4], "a number of at least 0"),
        ("erasing", -0.1, "a number from 0 to 1"),
        ("erasing", 1.1, "a number from 0 to 1"),
        ("erasing", "often", "a number from 0 to 1"),
        ("erasing", True, "a number from 0 to 1"),
        ("repeats", 0, "an integer of at least 1"),
        ("repeats", 1.5, "an integer of at least 1"),
        ("repeats", None, "an integer of at least 1"),
    ],
)
def test_settings_out_of_range(name: str, value: object, allowed: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(AugmentSettings, {name: value}, "recipe.augment")
    message = str(caught.value)
    assert message.startswith(f"recipe.augment.{name}=")
    assert " must be " in message
    assert allowed in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "settings",
    [
        {"crop_aspect": [1, 1]},
        {"rand_augment": "rand"},
        {"rand_augment": "rand-mstd1-tweights"},
        {"rand_augment": "rand-m6-n3-mstd1.0-inc1"},
        {"color_jitter": 2},
        {"erasing": 1},
        {"repeats": 100},
    ],
)
def test_settings_at_the_end_of_their_range(settings: dict[str, Any]) -> None:
    assert seeded(0, **settings).shape == (3, 64, 64)


def test_a_setting_that_there_is_not() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(AugmentSettings, {"repeats": 2, "reapeats": 3}, "recipe.augment")
    assert str(caught.value).startswith(
        "unknown setting 'recipe.augment.reapeats'; did you mean recipe.augment.repeats"
    )


@pytest.mark.parametrize("given", [None, 3, "rand-m9"])
def test_a_value_instead_of_the_group(given: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        compose_config([f"recipe.augment={'null' if given is None else given}"])
    assert "recipe.augment" in str(caught.value)
    assert "\n" not in str(caught.value)


# --- crop, flip, RandAugment, jitter


class TestCrop:
    @pytest.mark.parametrize("name", ["china.jpg", "flower.jpg"])
    @pytest.mark.parametrize(
        ("aspect", "kind"),
        [
            ((3 / 4, 4 / 3), "bilinear"),
            ((3 / 4, 4 / 3), "bicubic"),
            ((0.67, 1.5), "random"),
            ((3.0, 4.0), "bilinear"),
        ],
    )
    def test_the_pixels_are_those_of_pil(self, name: str, aspect: tuple[float, float], kind: str) -> None:
        image = sample(name)
        for seed in range(8):  # both mirrored and not
            result = seeded(seed, 224, image, crop_aspect=list(aspect), interpolation=kind)
            assert_near(result, to_tensor(crop_and_flip(seed, 224, image, aspect, kind)))
        assert result.dtype == torch.uint8
        assert type(result) is Tensor

    def test_the_default_is_bilinear_with_the_usual_aspects(self) -> None:
        expected = crop_and_flip(3, 64, sample(), (3 / 4, 4 / 3), "bilinear")
        assert_near(seeded(3), to_tensor(expected))

    @pytest.mark.parametrize("shape", [(20, 90), (300, 30), (64, 64), (1, 1)])
    def test_odd_photographs(self, shape: tuple[int, int]) -> None:
        image = sample().resize(shape)
        assert all(seeded(seed, 32, image).shape == (3, 32, 32) for seed in range(10))

    def test_both_interpolations_occur(self) -> None:
        """The same crop either way: which kind was drawn shows in the pixels."""
        transform = train_transform(64, AugmentSettings(interpolation="random"), MEAN)
        image = sample()
        used = []
        for seed in range(40):
            seed_all(seed)
            result = transform(as_picture(image))
            fixed = {kind: seeded(seed, 64, image, interpolation=kind) for kind in PIL_NAMES}
            used += [kind for kind, pixels in fixed.items() if torch.equal(result, pixels)]
        assert len(used) == 40
        assert 10 < used.count("bicubic") < 30

    def test_the_boxes_are_distributed_as_torchvisions(self) -> None:
        """Top, left, height, width, area and aspect of 4000 boxes each, by Kolmogorov and Smirnov."""
        crop, photograph = RandomCrop(224), torch.empty(3, 375, 500)
        seed_all(0)
        ours = box_figures([crop.get_params(photograph, crop.scale, crop.ratio) for _ in range(4000)])
        theirs = box_figures(
            [RandomResizedCrop.get_params(photograph, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)]
        )
        p_values = {name: float(ks_2samp(ours[name], theirs[name]).pvalue) for name in ours}
        assert min(p_values.values()) > 0.01, p_values
        # and the test can tell: a scale from 0.2 on is another distribution
        other = box_figures([crop.get_params(photograph, (0.2, 1.0), crop.ratio) for _ in range(4000)])
        assert ks_2samp(ours["area"], other["area"]).pvalue < 1e-6

    @pytest.mark.parametrize("subsampling", ["4:2:0", "4:4:4"])
    def test_from_the_file_as_by_pil(self, tmp_path: Path, subsampling: str) -> None:
        """Decoding included."""
        for i, name in enumerate(("china.jpg", "flower.jpg")):
            sample(name).save(tmp_path / name, quality=95, subsampling=subsampling)
            with Image.open(tmp_path / name) as image:
                expected = to_tensor(crop_and_flip(i, 224, image.convert("RGB"), (3 / 4, 4 / 3), "bilinear"))
            transform = train_transform(224, AugmentSettings(), MEAN)
            seed_all(i)
            assert_near(transform(Picture.read(tmp_path / name)), expected)

    def test_flips_are_binomial(self) -> None:
        """... and independent of the box."""
        ramp = as_picture(Image.fromarray(np.tile(np.arange(200, dtype=np.uint8), (100, 1))))
        transform = train_transform(16, AugmentSettings(), MEAN)
        seed_all(0)
        images = [transform(ramp)[0, 8].int() for _ in range(2000)]
        flips = [bool(row[0] > row[-1]) for row in images]
        middles = [float(row.float().mean()) for row in images]
        assert binomtest(sum(flips), 2000).pvalue > 0.01
        parts = [
            [middle for middle, flip in zip(middles, flips, strict=True) if flip == side] for side in (True, False)
        ]
        assert ks_2samp(*parts).pvalue > 0.01


class TestRandAugment:
    @pytest.mark.parametrize("text", [DEIT, "rand-m6-n3-mstd1.0-inc1"])
    @pytest.mark.parametrize("mean", [MEAN, (0.5, 0.5, 0.5)])
    def test_follows_the_crop(self, text: str, mean: tuple[float, float, float]) -> None:
        """timm's operations on the cropped photograph, bicubic like the crop, blanks of the mean colour."""
        fill = {0.485: (124, 116, 104), 0.5: (128, 128, 128)}[mean[0]]
        by_hand = rand_augment_transform(text, {"img_mean": fill, "interpolation": PIL_NAMES["bicubic"]})
        transform = train_transform(64, AugmentSettings(rand_augment=text, interpolation="bicubic"), mean)
        image, changed = sample(), 0
        for seed in range(30):
            cropped = seeded(seed, 64, image, interpolation="bicubic")
            expected = to_tensor(by_hand(as_image(cropped)))  # draws on from where the crop stopped
            changed += not torch.equal(expected, cropped)
            seed_all(seed)
            result = transform(as_picture(image))
            assert torch.equal(result, expected)
        assert result.dtype == torch.uint8
        assert changed > 10

    def test_blanks_have_the_mean_colour(self) -> None:
        """Black photographs, pushed and turned: the only other colour is the fill, or that of an inversion."""
        transform = train_transform(32, AugmentSettings(rand_augment="rand-m9-p1"), (0.2, 0.4, 0.6))
        seed_all(0)
        black = as_picture(Image.new("RGB", (64, 64)))
        colors = [
            tuple(transform(black)[:, row, column].tolist()) for _ in range(60) for row, column in [(0, 0), (31, 31)]
        ]
        assert (51, 102, 153) in colors

    def test_the_strongest_posterisation_is_black(self) -> None:
        """0 bits: Pillow refuses from version 13 on. By DeiT's recipe one image in some 700 is drawn so."""
        transform = train_transform(32, AugmentSettings(rand_augment="rand-m10-inc1-p1"), MEAN)
        posterize = next(op for op in transform.transforms[3].transforms[0].ops if op.name == "PosterizeIncreasing")  # type: ignore[attr-defined]
        image = as_image(seeded(0))
        assert not np.asarray(posterize(image)).any()
        weaker = next(op for op in rand_augment_transform("rand-m9-inc1-p1", {}).ops if op.name == posterize.name)
        seed_all(0)
        expected = weaker(image)
        posterize.magnitude = 9
        seed_all(0)
        assert np.array_equal(posterize(image), expected), "else it is timm's"
        assert expected.getbbox()

    def test_magnitude_counts(self) -> None:
        def change(text: str) -> float:
            """Mean change of a pixel against the plain crop."""
            pairs = [(seeded(seed, rand_augment=text), seeded(seed)) for seed in range(25)]
            return float(np.mean([(a.float() - b.float()).abs().mean() for a, b in pairs]))

        assert change("rand-m1-inc1") < 0.8 * change("rand-m9-inc1")


class TestColorJitter:
    def test_follows_the_crop(self) -> None:
        image = sample()
        for seed in range(5):
            cropped = seeded(seed, 64, image)
            expected = to_tensor(ColorJitter(0.4, 0.4, 0.4)(as_image(cropped)))
            assert torch.equal(seeded(seed, 64, image, color_jitter=0.4), expected)
            assert not torch.equal(expected, cropped)

    def test_none_beside_rand_augment(self) -> None:
        for seed in range(5):
            beside = seeded(seed, rand_augment=DEIT, color_jitter=0.4)
            assert torch.equal(beside, seeded(seed, rand_augment=DEIT))


# --- erasing


class Black:
    """Black images; the label is the image's number."""

    classes = ("a", "b")

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.zeros(3, 32, 32, dtype=torch.uint8), index


class BlackDataModule(ImageDataModule):
    length = 64

    def build(self, split: Split) -> Any:
        return Black(self.length if split == "train" else 16)


def black_data(length: int = 64, batch_size: int = 8, seed: int = 0, **augment: Any) -> BlackDataModule:
    settings = DataSettings(
        name="black",
        num_classes=2,
        mean=list(MEAN),
        std=list(STD),
        image_size=32,
        batch_size=batch_size,
        num_workers=0,
        seed=seed,
    )
    data = BlackDataModule(settings, AugmentSettings(**augment))
    data.length = length
    data.setup("fit")
    return data


def in_stage(data: ImageDataModule, training: bool = True) -> ImageDataModule:
    """As if a trainer were at it."""
    progress = SimpleNamespace(is_last_batch=False, state_dict=lambda: {"current": {"processed": 0}})
    stage = SimpleNamespace(
        training=training,
        global_rank=0,
        world_size=1,
        current_epoch=0,
        precision_plugin=Precision(),
        fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress)),
    )
    data.trainer = stage  # type: ignore[assignment]
    return data


def transferred(data: ImageDataModule, images: Tensor) -> Tensor:
    return data.on_after_batch_transfer((images, torch.arange(len(images))), 0)[0]


BLACK = torch.zeros(2000, 3, 32, 32, dtype=torch.uint8)


class TestErasing:
    def test_share_place_and_noise(self) -> None:
        seed_all(0)
        data = in_stage(black_data(erasing=0.25))
        plain = data.on_device.normalize(BLACK)
        changed = transferred(data, BLACK) != plain  # (N, 3, H, W); noise hits the old value with probability 0
        erased = changed.flatten(1).any(1)
        assert abs(erased.float().mean() - 0.25) < 0.04  # 4 standard errors
        areas = []
        for mask in changed[erased]:
            assert torch.equal(mask[0], mask[1])
            assert torch.equal(mask[0], mask[2])
            rows, columns = mask[0].any(1).nonzero(), mask[0].any(0).nonzero()
            box = mask[0, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            assert box.all(), "one rectangle, all of it noise and nothing outside"
            areas.append(box.numel() / 32**2)
        assert 0.01 < min(areas) < 0.04
        assert 0.3 < max(areas) < 0.36
        assert data.on_device.normalize(BLACK).equal(plain)
        assert not BLACK.any(), "the bytes stay"

    def test_noise_is_standard_normal_where_the_model_sees_it(self) -> None:
        seed_all(0)
        data = in_stage(black_data(erasing=1))
        result = transferred(data, BLACK)
        changed = result != data.on_device.normalize(BLACK)
        assert changed.flatten(1).any(1).all(), "each image"
        for channel in range(3):  # else than after normalisation, the channels would differ
            noise = result[:, channel][changed[:, channel]]
            assert len(noise) > 100_000
            assert abs(noise.mean()) < 0.02
            assert abs(noise.std() - 1) < 0.02
            assert noise.unique().numel() > 0.9 * noise.numel(), "drawn for each pixel"

    def test_labels_are_left_alone(self) -> None:
        data = in_stage(black_data(erasing=1))
        labels = torch.arange(10)
        result = data.on_after_batch_transfer((BLACK[:10], labels), 0)[1]
        assert result is labels
        assert torch.equal(labels, torch.arange(10))

    @pytest.mark.parametrize(("erasing", "training"), [(0.0, True), (1.0, False)])
    def test_neither_at_0_nor_outside_training(self, erasing: float, training: bool) -> None:
        data = in_stage(black_data(erasing=erasing), training)
        seed_all(0)
        before = random.getstate()
        assert torch.equal(transferred(data, BLACK), data.on_device.normalize(BLACK))
        assert random.getstate() == before

    def test_without_a_trainer_nothing_is_erased(self) -> None:
        data = black_data(erasing=1)
        assert torch.equal(transferred(data, BLACK), data.on_device.normalize(BLACK))

    def test_made_once_for_each_device(self, monkeypatch: pytest.MonkeyPatch) -> None:
        made: list[tuple[float, torch.device]] = []

        def make(probability: float, device: torch.device, **_: Any) -> Callable[[Tensor], Tensor]:
            made.append((probability, device))
            return lambda images: images

        monkeypatch.setattr(on_device, "RandomErasing", make)
        data = in_stage(black_data(erasing=0.5))
        for _ in range(3):
            transferred(data, BLACK[:2])
            transferred(data, BLACK[:2].to("meta"))
        assert made == [(0.5, torch.device("cpu")), (0.5, torch.device("meta"))]

    @pytest.mark.gpu
    def test_on_the_device(self) -> None:
        data = in_stage(black_data(erasing=1))
        images = BLACK.cuda()
        changed = transferred(data, images) != data.on_device.normalize(images)
        assert changed.is_cuda
        assert changed.flatten(1).any(1).all()

    def test_a_run_erases_in_training_only(self) -> None:
        data = black_data(erasing=1)
        black = data.on_device.normalize(BLACK[0])
        seen: dict[str, list[bool]] = {"train": [], "sanity": [], "val": []}

        class Watcher(pl.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.weight = torch.nn.Parameter(torch.zeros(()))

            def note(self, stage: str, images: Tensor) -> None:
                seen[stage] += [not torch.equal(image, black) for image in images]

            def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
                self.note("train", batch[0])
                return self.weight * 0

            def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
                self.note("sanity" if self.trainer.sanity_checking else "val", batch[0])

            def configure_optimizers(self) -> torch.optim.Optimizer:
                return torch.optim.SGD(self.parameters(), lr=0.1)

        trainer = pl.Trainer(
            max_epochs=2,
            val_check_interval=0.5,  # training goes on after a validation
            num_sanity_val_steps=1,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        model = Watcher()
        trainer.fit(model, datamodule=data)
        trainer.validate(model, datamodule=data, verbose=False)
        assert seen == {"train": [True] * 128, "sanity": [False] * 8, "val": [False] * 80}


# --- repeats


def first_of(order: list[int], repeats: int) -> list[int]:
    """The images of an order in which each comes ``repeats`` times in a row, the last perhaps less often."""
    for start in range(0, len(order), repeats):
        assert len(set(order[start : start + repeats])) == 1
    return order[::repeats]


class TestRepeats:
    def test_thrice_in_a_row(self) -> None:
        images = first_of(list(EpochRepeat(60, seed=0, repeats=3)), 3)
        assert len(images) == len(set(images)) == 20
        assert set(images) <= set(range(60))

    @pytest.mark.parametrize("repeats", [2, 3, 7])
    def test_the_images_are_the_first_ones_of_the_shuffle(self, repeats: int) -> None:
        for seed, epoch in [(0, 0), (0, 4), (3, 4)]:
            order = list(EpochRepeat(70, seed, repeats, epoch=epoch))
            assert order == [image for image in EpochShuffle(70, seed, epoch) for _ in range(repeats)][:70]

    def test_pure_in_seed_and_epoch(self) -> None:
        seed_all(1)
        epochs = {epoch: list(EpochRepeat(60, 0, 3, epoch=epoch)) for epoch in range(4)}
        seed_all(2)
        sampler = EpochRepeat(60, 0, 3)
        assert [list(sampler) for _ in range(3)] == [epochs[0], epochs[1], epochs[2]], "each pass is an epoch"
        sampler.set_epoch(1)
        sampler.set_epoch(1)
        assert list(sampler) == epochs[1]
        assert list(sampler) == epochs[2], "and goes on from the one announced"
        orders = [*map(tuple, epochs.values()), *(tuple(EpochRepeat(60, seed, 3)) for seed in (1, 2, 3))]
        assert len(set(orders)) == 7, "no (seed, epoch) shares the order of another"

    @pytest.mark.parametrize(
        ("length", "samples"), [(1, 1), (2, 2), (10, 10), (255, 255), (256, 256), (300, 256), (1000, 768)]
    )
    def test_length_of_an_epoch(self, length: int, samples: int) -> None:
        sampler = EpochRepeat(length, 0, 3)
        assert len(sampler) == samples
        assert len(list(sampler)) == samples

    def test_imagenets_epoch_is_that_of_deit(self) -> None:
        assert len(EpochRepeat(1_281_167, 0, 3)) == 1_281_024 == 1251 * 1024

    def test_the_loader_repeats(self) -> None:
        def labels(**changes: Any) -> list[int]:
            return [int(label) for _, batch in black_data(60, 6, **changes).train_dataloader() for label in batch]

        order = labels(repeats=3)
        assert order == list(EpochRepeat(60, 0, 3))
        assert labels(repeats=3, seed=1) == list(EpochRepeat(60, 1, 3))
        assert labels(repeats=1) == labels() == list(EpochShuffle(60, 0)), "once: the plain shuffle"

    @pytest.mark.parametrize(("batch_size", "batches"), [(100, [100, 100]), (256, [256]), (280, [256])])
    def test_the_last_batch_counts_the_samples_of_the_epoch(self, batch_size: int, batches: list[int]) -> None:
        """300 images make 256 samples: with batches of 280, one short batch and not none."""
        loader = black_data(300, batch_size, repeats=3).train_dataloader()
        assert [len(labels) for _, labels in loader] == batches

    def test_each_time_augmented_anew(self, tmp_path: Path) -> None:
        seed_all(0)
        data = photo_data(tmp_path, augment={"repeats": 3})
        images, _ = next(iter(data.train_dataloader()))  # 2 photographs, 3 times each
        flat = images.flatten(1).tolist()
        assert len({tuple(pixels) for pixels in flat}) == 6


# --- all of it


def photo_data(root: Path, **changes: Any) -> ImageFolderDataModule:
    """Two classes of real photographs, 6 training images each."""
    for split, count in (("train", 6), ("val", 2)):
        for name in ("china", "flower"):
            folder = root / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                sample(f"{name}.jpg").resize((90 + i, 60)).save(folder / f"{i}.jpg")
    settings: dict[str, Any] = {
        "root": str(root),
        "num_classes": 2,
        "mean": list(MEAN),
        "std": list(STD),
        "image_size": 32,
        "crop_ratio": 0.875,
        "interpolation": "bicubic",
        "augment": {},
        "batch_size": 6,
        "num_workers": 0,
        "seed": 0,
    }
    data = create_data("imagefolder", **{**settings, **changes})
    assert isinstance(data, ImageFolderDataModule)
    data.setup("fit")
    return data


def test_each_setting_reaches_the_images(tmp_path: Path) -> None:
    """The data module hands the whole group, and its own mean, to the transform."""
    data = photo_data(tmp_path, augment={"rand_augment": DEIT, "interpolation": "bicubic"}, mean=[0.1, 0.2, 0.3])
    assert data.train_dataset is not None
    expected = train_transform(32, AugmentSettings(rand_augment=DEIT, interpolation="bicubic"), (0.1, 0.2, 0.3))
    image = Picture.read(tmp_path / "train" / "china" / "0.jpg")
    for seed in range(20):
        seed_all(seed)
        by_hand = expected(image)
        seed_all(seed)
        assert torch.equal(data.train_dataset[0][0], by_hand)


def test_an_unknown_setting_in_the_group(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^unknown setting 'data.augment.erase'"):
        photo_data(tmp_path, augment={"erase": 0.5})


def test_without_augmentation_training_images_are_prepared_as_for_validation(tmp_path: Path) -> None:
    augment = {"enabled": False, "rand_augment": DEIT, "color_jitter": 0.4, "erasing": 1.0, "interpolation": "random"}
    data = photo_data(tmp_path, augment=augment)
    in_stage(data)
    images, labels = next(iter(data.train_dataloader()))
    order = data.train_order(seed=0, epoch=0).order(0)
    files = [data.train_file(number) for number in order[:6]]
    expected = torch.stack([eval_transform(32, 0.875, "bicubic")(Picture.read(file)) for file in files if file])
    assert torch.equal(images, expected)
    on_device, _ = data.on_after_batch_transfer((images, labels), 0)
    assert torch.equal(on_device, data.on_device.normalize(expected)), "erased"


def test_without_augmentation_images_are_not_repeated() -> None:
    message = r"^recipe\.augment\.repeats=3 must be 1 with recipe\.augment\.enabled=false"
    with pytest.raises(ConfigError, match=message):
        compose_config(["data=imagenet", "recipe=deit", "recipe.augment.enabled=false"])
    words = ["data=imagenet", "recipe=deit", "recipe.augment.enabled=false", "recipe.augment.repeats=1"]
    assert compose_config(words).data.augment.enabled is False


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_same_seed_gives_the_same_batches(tmp_path: Path, num_workers: int) -> None:
    everything = yaml.safe_load((CONF / "recipe" / "deit.yaml").read_text())["augment"]

    def batches(seed: int) -> list[Tensor]:
        pl.seed_everything(seed, verbose=False)
        data = photo_data(tmp_path, augment=everything, num_workers=num_workers, seed=seed)
        in_stage(data)
        return [part for batch in data.train_dataloader() for part in data.on_after_batch_transfer(batch, 0)]

    first, again, other = batches(0), batches(0), batches(1)
    assert len(first) == len(again) == 4  # images and labels of 12 samples in batches of 6
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
