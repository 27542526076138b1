"""Cluttered digits: an honest split, right labels, and images that depend on the seed alone."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from sklearn.datasets import load_digits

from noah_lightning.config.choices import DigitsSettings
from noah_lightning.data import create_data
from noah_lightning.data.digits import (
    TRAIN,
    VAL,
    DigitsDataModule,
    DigitsDataset,
    Layout,
    draw_layout,
    load_glyphs,
    render,
    split_sources,
)
from noah_lightning.errors import ConfigError, DataError

CONFIG = yaml.safe_load((Path(__file__).parents[1] / "conf" / "data" / "digits.yaml").read_text())
CONFIG.update(seed=0, batch_size=64)  # these two refer to other parts of the configuration
SETTINGS = DigitsSettings(image_size=64, digit_size=24, num_fragments=8, fragment_size=8)


def digits(**changes: object) -> DigitsDataModule:
    small = {"train_images": 300, "val_images": 120}
    data = create_data(**{**CONFIG, **small, **changes})
    assert isinstance(data, DigitsDataModule)
    data.setup("fit")
    return data


@pytest.fixture(scope="module")
def large() -> DigitsDataModule:
    """As many images as by default."""
    return digits(train_images=8000, val_images=2000)


def sets(data: DigitsDataModule) -> tuple[DigitsDataset, DigitsDataset]:
    """The training and the validation set."""
    assert isinstance(data.train_dataset, DigitsDataset)
    assert isinstance(data.val_dataset, DigitsDataset)
    return data.train_dataset, data.val_dataset


def layout_of(data: DigitsDataModule, stream: int) -> Layout:
    pools = split_sources(load_glyphs(24)[1], data.seed)
    count = data.settings.train_images if stream == TRAIN else data.settings.val_images
    return draw_layout(pools[stream == VAL], count, stream, data.settings)


class TestSplit:
    def test_is_a_stratified_partition(self) -> None:
        labels = load_digits().target
        train, val = split_sources(labels, seed=0)
        assert sorted([*train, *val]) == list(range(1797))
        parts = np.bincount(labels[val]) / np.bincount(labels)
        assert len(parts) == 10
        assert np.all(np.abs(parts - 0.2) < 0.01)

    def test_comes_from_the_seed(self) -> None:
        labels = load_digits().target
        again, other = split_sources(labels, 0), split_sources(labels, 1)
        assert np.array_equal(split_sources(labels, 0)[1], again[1])
        assert not np.array_equal(again[1], other[1])

    @pytest.mark.parametrize(("stream", "other"), [(TRAIN, VAL), (VAL, TRAIN)])
    def test_no_pixel_comes_from_the_other_side(self, stream: int, other: int) -> None:
        """Blacking out the other side's hand-written digits changes no pixel; blacking out one's own does."""
        data = digits()
        glyphs, labels = load_glyphs(24)
        pools = {TRAIN: split_sources(labels, 0)[0], VAL: split_sources(labels, 0)[1]}
        dataset = sets(data)[stream == VAL]

        def rendered_without(side: int) -> np.ndarray:
            censored = glyphs.copy()
            censored[pools[side]] = 0
            return render(censored, layout_of(data, stream), 64, 8)

        assert np.array_equal(rendered_without(other), dataset.images.numpy())
        assert not rendered_without(stream).any()

    @pytest.mark.parametrize("stream", [TRAIN, VAL])
    def test_fragments_come_from_other_digits_of_the_same_side(self, stream: int) -> None:
        pool = split_sources(load_glyphs(24)[1], 0)[stream == VAL]
        layout = draw_layout(pool, 2000, stream, SETTINGS)
        assert set(layout.source) | set(layout.fragment_source.flat) == set(pool), "and all are used"
        assert not (layout.fragment_source == layout.source[:, None]).any()

    def test_smallest_pool(self) -> None:
        layout = draw_layout(np.array([3, 5]), 50, TRAIN, SETTINGS)
        assert np.array_equal(layout.fragment_source, np.repeat(8 - layout.source[:, None], 8, axis=1))


class TestLayout:
    def test_positions_fill_their_range(self) -> None:
        layout = draw_layout(np.arange(100), 4000, TRAIN, SETTINGS)
        for positions, last in ((layout.digit_at, 40), (layout.cut_at, 16), (layout.fragment_at, 56)):
            assert (positions.min(), positions.max()) == (0, last)
            assert abs(positions.mean() - last / 2) < 0.02 * last

    def test_image_does_not_depend_on_how_many_there_are(self) -> None:
        few, many = sets(digits(train_images=50))[0], sets(digits(train_images=300))[0]
        assert torch.equal(few.images, many.images[:50])
        assert torch.equal(few.labels, many.labels[:50])

    def test_sources_take_turns(self) -> None:
        pool = np.arange(7, 17)
        layout = draw_layout(pool, 25, TRAIN, SETTINGS)
        assert layout.source.tolist() == [*pool, *pool, *pool[:5]]


class TestRender:
    glyphs = np.array([[[10, 20], [30, 40]], [[200, 0], [0, 25]]], dtype=np.uint8)  # (2, 2, 2)

    def test_by_hand(self) -> None:
        """Digit 0 at row 1, column 0; pixel (1, 1) of digit 1 over it and pixel (0, 0) elsewhere."""
        layout = Layout(
            source=np.array([0]),
            digit_at=np.array([[1, 0]]),
            fragment_source=np.array([[1, 1]]),
            cut_at=np.array([[[1, 1], [0, 0]]]),
            fragment_at=np.array([[[1, 0], [0, 2]]]),
        )
        image = render(self.glyphs, layout, image_size=3, fragment_size=1)
        assert image.tolist() == [[[0, 0, 200], [25, 20, 0], [30, 40, 0]]]

    def test_brighter_pixel_wins(self) -> None:
        layout = Layout(
            source=np.array([0]),
            digit_at=np.array([[0, 0]]),
            fragment_source=np.array([[1]]),
            cut_at=np.zeros((1, 1, 2), dtype=np.int64),
            fragment_at=np.zeros((1, 1, 2), dtype=np.int64),
        )
        assert render(self.glyphs, layout, 2, 2).tolist() == [[[200, 20], [30, 40]]]


class TestLabels:
    def test_without_clutter_each_image_is_a_digit_of_its_label(self) -> None:
        """Found by its pixels, independently of the layout."""
        data = digits(num_fragments=0, image_size=24, train_images=200)
        glyphs, labels = load_glyphs(24)
        label_of = {glyph.tobytes(): int(label) for glyph, label in zip(glyphs, labels, strict=True)}
        for dataset in sets(data):
            assert [label_of[image.numpy().tobytes()] for image in dataset.images] == dataset.labels.tolist()

    def test_glyphs_are_the_enlarged_digits(self) -> None:
        bunch = load_digits()
        glyphs, labels = load_glyphs(8)  # the original size: nothing but a change of scale
        assert np.array_equal(glyphs, np.rint(bunch.images * 255 / 16).astype(np.uint8))
        assert np.array_equal(labels, bunch.target)
        large = load_glyphs(24)[0].astype(float)
        centres = large[:, 1::3, 1::3]  # an odd factor keeps the centres of the source pixels
        assert np.abs(centres - bunch.images * 255 / 16).max() <= 0.5

    def test_digit_lies_where_the_layout_says(self) -> None:
        data = digits()
        layout = layout_of(data, TRAIN)
        glyphs, _ = load_glyphs(24)
        for i in range(20):
            row, column = layout.digit_at[i]
            window = sets(data)[0].images[i, row : row + 24, column : column + 24].numpy()
            assert (window >= glyphs[layout.source[i]]).all(), "only ever brightened by fragments"

    def test_classes_are_balanced(self, large: DigitsDataModule) -> None:
        for dataset in sets(large):
            counts = np.bincount(dataset.labels)
            assert len(counts) == 10
            assert np.all(np.abs(counts / counts.sum() - 0.1) < 0.01)


class TestDataModule:
    def test_same_seed_same_images(self) -> None:
        for first, again in zip(sets(digits()), sets(digits(num_workers=1)), strict=True):
            assert torch.equal(first.images, again.images)
            assert torch.equal(first.labels, again.labels)

    def test_workers_change_nothing(self) -> None:
        in_line, by_workers = (
            [batch for loader in (data.train_dataloader(), data.val_dataloader()) for batch in loader]
            for data in (digits(), digits(num_workers=2))
        )
        assert len(in_line) == len(by_workers) == 300 // 64 + 2
        for one, other in zip(in_line, by_workers, strict=True):
            assert torch.equal(one[0], other[0])
            assert torch.equal(one[1], other[1])

    def test_other_seed_other_images(self) -> None:
        assert not torch.equal(sets(digits())[0].images, sets(digits(seed=1))[0].images)

    def test_train_and_val_layouts_differ(self) -> None:
        pool = np.arange(50)
        train, val = (draw_layout(pool, 50, stream, SETTINGS) for stream in (TRAIN, VAL))
        assert not np.array_equal(train.digit_at, val.digit_at)

    def test_batches(self) -> None:
        data = digits()
        images, labels = next(iter(data.train_dataloader()))
        assert images.shape == (64, 3, 64, 64)
        assert images.dtype == torch.uint8
        assert labels.dtype == torch.int64
        assert torch.equal(images[:, 0], images[:, 1])
        assert torch.equal(images[:, 0], images[:, 2])
        assert data.class_names == list("0123456789")

    def test_configured_statistics_are_those_of_the_images(self, large: DigitsDataModule) -> None:
        images = large.on_device.normalize(sets(large)[0].images[:, None].expand(-1, 3, -1, -1))
        assert abs(images.mean()) < 0.01
        assert abs(images.std() - 1) < 0.01

    def test_rendering_is_quick(self) -> None:
        load_glyphs(24)
        start = time.process_time()
        digits(train_images=8000, val_images=2000)
        assert time.process_time() - start < 5, "about 0.4 s on an idle core"

    @pytest.mark.parametrize(
        ("changes", "allowed"),
        [
            ({"train_images": 0}, "at least 1"),
            ({"val_images": 0}, "at least 1"),
            ({"digit_size": 65}, "at most data.image_size=64"),
            ({"digit_size": 4}, "at least 8"),
            ({"num_fragments": -1}, "at least 0"),
            ({"fragment_size": 25}, "at most data.digit_size=24"),
        ],
    )
    def test_settings_out_of_range(self, changes: dict[str, int], allowed: str) -> None:
        (key, value), *_ = changes.items()
        with pytest.raises(ConfigError, match=f"^data.{key}={value} must be .*{allowed}$"):
            digits(**changes)

    def test_other_class_count(self) -> None:
        with pytest.raises(DataError, match=r"set data.num_classes=10$"):
            digits(num_classes=9)


def test_each_image_carries_the_label_of_the_digit_it_shows() -> None:
    """A canvas that the digit fills, without clutter: the pixels say which source it is, scikit-learn its label."""
    data = digits(image_size=24, num_fragments=0)
    glyphs = load_glyphs(24)[0].reshape(-1, 24 * 24)
    targets = load_digits().target
    for loader in (data.train_dataloader(), data.val_dataloader()):
        for images, labels in loader:
            for image, label in zip(images[:, 0].flatten(1).numpy(), labels, strict=True):
                [source] = np.flatnonzero((glyphs == image).all(axis=1))
                assert label == targets[source]
