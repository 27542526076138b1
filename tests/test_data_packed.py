"""data=packed: the images of the tree, in an order that suits large shards, each exactly once."""

import io
import os
import pickle
import tarfile
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from conftest import Answer
from noah_lightning.config.compose import compose_config
from noah_lightning.data import create_data
from noah_lightning.data.image import Picture
from noah_lightning.data.packed import OPEN_SHARDS, PackedImages
from noah_lightning.data.samplers import ShardShuffle
from noah_lightning.errors import DataError
from noah_lightning.tools.pack import pack
from noah_lightning.train import train
from test_processes import TWO, in_process_group

Noah = Callable[..., Answer]
CONFIG = yaml.safe_load((Path(__file__).parents[1] / "conf" / "data" / "packed.yaml").read_text())
CONFIG.update(seed=0, batch_size=4, num_workers=0, num_classes=2, image_size=32)
# what the recipe says, usually
CONFIG.update(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
CONFIG.update(crop_ratio=0.875, interpolation="bilinear", augment={})
TRAIN, VAL = 38, 10  # images


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise, each image another one, from reddish ants to bluish bees."""
    root = tmp_path_factory.mktemp("tree")
    rng = np.random.default_rng(0)
    for split, count in (("train", TRAIN // 2), ("val", VAL // 2)):
        for label, name in enumerate(("ant", "bee")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 100, (40, 50, 3), dtype=np.uint8)
                pixels[:, :, 2 * label] += 120
                Image.fromarray(pixels).save(folder / f"{i:02}.jpg")
    return root


@pytest.fixture(scope="module")
def packed(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "out"
    pack(tree, out, 20_000)
    assert len(list(out.glob("train-*.tar"))) > 5
    return out


@pytest.fixture
def own_copy(packed: Path, tmp_path: Path) -> Path:
    """To be damaged."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in packed.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def data_of(
    root: Path, name: str = "packed", stage: str = "fit", rank: tuple[int, int] = (0, 1), **changes: Any
) -> Any:
    settings = {**CONFIG, "name": name, "root": str(root), **changes}
    if name == "imagefolder":
        del settings["mix_shards"], settings["exif_orientation"]
    data = create_data(**settings)
    data.setup(stage)
    data._rank_of = lambda: rank
    return data


def read_all(root: Path) -> None:
    data = data_of(root)
    for loader in (data.train_dataloader(), data.val_dataloader()):
        list(loader)


def mistake(root: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_all(root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def trainer_in(epoch: int, batches: int) -> SimpleNamespace:
    """A trainer that resumes there."""
    progress = SimpleNamespace(is_last_batch=False, state_dict=lambda: {"current": {"processed": batches}})
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
    return SimpleNamespace(current_epoch=epoch, fit_loop=loop, training=False)


def as_set(batches: Iterator[tuple[Tensor, Tensor]]) -> list[tuple[int, bytes]]:
    return sorted(
        (int(label), image.numpy().tobytes())
        for images, labels in batches
        for image, label in zip(images, labels, strict=True)
        if label >= 0
    )


# --- the same images


def test_validation_is_that_of_the_tree(tree: Path, packed: Path) -> None:
    ours, trees = data_of(packed), data_of(tree, "imagefolder")
    assert ours.class_names == trees.class_names == ["ant", "bee"]
    for (images, labels), (of_tree, labels_of_tree) in zip(
        ours.val_dataloader(), trees.val_dataloader(), strict=True
    ):
        assert torch.equal(images, of_tree)
        assert torch.equal(labels, labels_of_tree)


def test_training_images_are_those_of_the_tree(tree: Path, packed: Path) -> None:
    """Pixel for pixel, looked at without augmentation."""
    found = []
    for data in (data_of(packed), data_of(tree, "imagefolder")):
        data.train_dataset.transform = Picture.pixels
        found.append(as_set(DataLoader(data.train_dataset)))
    assert found[0] == found[1]
    assert len(found[0]) == TRAIN


def test_batches_and_augmentation(packed: Path) -> None:
    data = data_of(packed)
    images, labels = next(iter(data.train_dataloader()))
    assert (images.dtype, images.shape, labels.dtype) == (torch.uint8, (4, 3, 32, 32), torch.int64)
    assert not torch.equal(data.train_dataset[0][0], data.train_dataset[0][0])
    assert torch.equal(data.val_dataset[0][0], data.val_dataset[0][0])


def test_loading_processes_read_the_same(packed: Path) -> None:
    first, second = data_of(packed), data_of(packed, num_workers=2)
    assert first.val_dataset[0][1] == 0, "a shard is open when the processes are forked"
    for ours, theirs in ((first.val_dataloader(), second.val_dataloader()),):
        for (images, labels), (others, other_labels) in zip(ours, theirs, strict=True):
            assert torch.equal(images, others)
            assert torch.equal(labels, other_labels)


def test_a_copy_for_another_process_opens_its_own_files(packed: Path) -> None:
    images = PackedImages(packed, "val", Picture.pixels)
    image, _ = images[0]
    copy = pickle.loads(pickle.dumps(images))
    del images
    assert torch.equal(copy[0][0], image)


def test_the_first_image_of_a_shard_asks_for_all_of_it(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(os, "posix_fadvise", lambda handle, *advice: asked.append((os.fstat(handle).st_ino, *advice)))
    images = PackedImages(packed, "train", Picture.pixels)
    for i in range(TRAIN):
        images[i]
    shards = sorted(packed.glob("train-*.tar"))
    assert asked == [(shard.stat().st_ino, 0, 0, os.POSIX_FADV_WILLNEED) for shard in shards]


def test_few_files_are_open_at_a_time(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("noah_lightning.data.packed.OPEN_SHARDS", 2)
    assert OPEN_SHARDS > 2
    images = PackedImages(packed, "train", Picture.pixels)
    before = len(os.listdir("/proc/self/fd"))
    for i in [*range(TRAIN), *range(TRAIN)]:
        images[i]
    assert len(os.listdir("/proc/self/fd")) <= before + 2
    del images
    assert len(os.listdir("/proc/self/fd")) == before


# --- the order


def order_of(**settings: Any) -> list[int]:
    return list(ShardShuffle(**{"ends": np.array([10, 20, 30, 36]), "seed": 0, "mix": 1, **settings}))


@pytest.mark.parametrize("mix", [0, 1, 3, 100])
@pytest.mark.parametrize("processes", [1, 2, 3, 4])
def test_each_image_once_an_epoch(processes: int, mix: int) -> None:
    seen = []
    for epoch in range(3):
        parts = [order_of(mix=mix, epoch=epoch, rank=rank, world_size=processes) for rank in range(processes)]
        assert sorted(chain(*parts)) == list(range(36))
        seen.append(parts)
    assert seen[0] != seen[1] != seen[2] != seen[0]


@pytest.mark.parametrize("processes", [5, 7, 40])
def test_the_first_images_fill_up(processes: int) -> None:
    parts = [order_of(rank=rank, world_size=processes) for rank in range(processes)]
    assert {len(part) for part in parts} == {-(-36 // processes)}
    counts = np.bincount(list(chain(*parts)), minlength=36)
    assert counts.min() == 1
    assert counts.max() <= 2


def test_order_depends_on_seed_and_epoch_alone() -> None:
    torch.manual_seed(1)
    sampler = ShardShuffle(np.array([10, 20, 30, 36]), seed=0, mix=1)
    first, second = list(sampler), list(sampler)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert (order_of(), order_of(epoch=1)) == (first, second)
    assert torch.equal(before, torch.get_rng_state())
    assert order_of(seed=1) != first
    sampler.set_epoch(0)
    assert list(sampler) == first
    assert len(sampler) == 36


def shards_in_use(order: list[int], ends: np.ndarray) -> int:
    """Largest number of shards that have been begun and not ended."""
    shards = np.searchsorted(ends, order, side="right")
    spans = [np.flatnonzero(shards == shard)[[0, -1]] for shard in np.unique(shards)]
    return max(sum(first <= place <= last for first, last in spans) for place in range(len(order)))


@pytest.mark.parametrize(("mix", "most"), [(0, 1), (1, 3), (3, 5)])
def test_few_shards_are_in_use_at_a_time(mix: int, most: int) -> None:
    ends = np.arange(50, 1001, 50)
    assert shards_in_use(order_of(ends=ends, mix=mix), ends) <= most
    assert shards_in_use(order_of(ends=ends, mix=mix, rank=1, world_size=2), ends) <= most


def test_a_process_reads_its_own_shards() -> None:
    ends = np.arange(50, 1001, 50)
    parts = [order_of(ends=ends, rank=rank, world_size=3) for rank in range(3)]
    shards = [set(np.searchsorted(ends, part, side="right")) for part in parts]
    for one, other in ((0, 1), (1, 2), (0, 2)):
        assert len(shards[one] & shards[other]) <= 1


def test_images_of_a_shard_come_in_another_order_each_epoch() -> None:
    ends = np.array([200])
    first, second = order_of(ends=ends), order_of(ends=ends, epoch=1)
    assert abs(np.corrcoef(np.argsort(first), np.argsort(second))[0, 1]) < 0.3
    assert abs(np.corrcoef(first, range(200))[0, 1]) < 0.3


def test_repeats_come_in_a_row_and_keep_the_length_of_an_epoch() -> None:
    for processes in (1, 2):
        order = order_of(repeats=3, world_size=processes)
        assert len(order) == 36 // processes
        assert order[0::3] == order[1::3] == order[2::3]
        assert order[0::3] == order_of(world_size=processes)[: 12 // processes]


@pytest.mark.parametrize("processes", [1, 2])
def test_loaders_see_each_image_once(packed: Path, processes: int) -> None:
    for epoch in range(2):
        seen = []
        for rank in range(processes):
            data = data_of(packed, rank=(rank, processes), batch_size=1)
            data.train_dataset.transform = Picture.pixels
            loader = data.train_dataloader()
            loader.batch_sampler.sampler.set_epoch(epoch)
            seen += as_set(loader)
        assert len(set(seen)) == len(seen) == TRAIN


def test_a_resumed_run_begins_with_its_epoch(packed: Path) -> None:
    data = data_of(packed)
    order = data.train_dataloader().batch_sampler.sampler
    _, second = list(order), list(order)
    data.trainer = trainer_in(epoch=1, batches=0)
    assert list(data.train_dataloader().batch_sampler.sampler) == second


def test_a_run_resumes_in_the_middle_of_an_epoch(packed: Path) -> None:
    """The same images, augmented alike."""
    data = data_of(packed)
    whole = list(data.train_dataloader())
    data.trainer = trainer_in(epoch=0, batches=5)
    rest = list(data.train_dataloader())
    assert len(rest) == len(whole) - 5 > 0
    for (images, labels), (others, other_labels) in zip(rest, whole[5:], strict=True):
        assert torch.equal(images, others)
        assert torch.equal(labels, other_labels)


def test_repeats_are_those_of_the_recipe(packed: Path) -> None:
    order = list(data_of(packed, augment={"repeats": 2}).train_dataloader().batch_sampler.sampler)
    assert len(order) == TRAIN
    assert order[0::2] == order[1::2]


@pytest.mark.parametrize("batch_size", [3, 4, 64])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_validation_is_exact(packed: Path, processes: int, batch_size: int) -> None:
    parts = []
    for rank in range(processes):
        data = data_of(packed, stage="validate", rank=(rank, processes), batch_size=batch_size)
        assert data.train_dataset is None
        parts.append(list(data.val_dataloader()))
    assert len({tuple(len(labels) for _, labels in part) for part in parts}) == 1, "equally many, equally large"
    assert len(set(as_set(chain(*parts)))) == VAL


# --- mistakes


def test_folders_that_are_no_pack(tree: Path, tmp_path: Path, noah: Noah) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for root, message in (
        ("nowhere", "does not exist: noah pack TREE nowhere creates it from a folder tree"),
        ("file", "is not a folder: it must be a folder written by noah pack"),
        ("empty", "has no pack.json: it must be a folder written by noah pack"),
        (tree, f"is a folder tree: add data=imagefolder, or pack it with noah pack {tree} OUT"),
    ):
        answer = noah("train", "data=packed", f"data.root={root}")
        assert (answer.status, answer.err) == (2, f"noah: data.root={root} {message}\n")
    assert "data.root is not set" in noah("train", "data=packed").err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read (Expecting value"),
        ("[]", "was not written by noah pack"),
        ('{"name": "x"}', "was not written by noah pack"),
        ('{"format": "noah_lightning pack", "version": 2, "classes": []}', "is a pack of version 2, this program"),
    ],
)
def test_facts_that_are_none(own_copy: Path, text: str, message: str) -> None:
    (own_copy / "pack.json").write_text(text)
    assert message in mistake(own_copy)


def test_class_count_that_differs(packed: Path) -> None:
    with pytest.raises(DataError, match=r"set data.num_classes=2$"):
        data_of(packed, num_classes=3)


@pytest.mark.parametrize("name", ["train-000002.tar", "val-000000.tar"])
def test_a_truncated_or_missing_shard_is_named(own_copy: Path, name: str) -> None:
    shard = own_copy / name
    os.truncate(shard, shard.stat().st_size - 1)
    assert mistake(own_copy).startswith(f"{shard} has ")
    shard.unlink()
    assert mistake(own_copy) == f"{shard} cannot be read (No such file or directory): copy or make the pack again"


def test_a_damaged_shard_is_named(own_copy: Path) -> None:
    """One bit of an image's pixels: it could be decoded all the same."""
    shard = own_copy / "train-000001.tar"
    index = data_of(own_copy).train_dataset.index
    image = int(index.ends[0]) + 1
    data = bytearray(shard.read_bytes())
    data[int(index.offsets[image] + index.sizes[image]) - 100] ^= 4
    shard.write_bytes(data)
    assert mistake(own_copy) == f"{shard} is damaged (image {image} of train): copy or make the pack again"


def test_a_shard_that_goes_away_later_is_named(own_copy: Path) -> None:
    data = data_of(own_copy)
    shard = own_copy / "val-000000.tar"
    os.truncate(shard, 700)
    with pytest.raises(DataError, match=f"^{shard} is damaged "):
        list(data.val_dataloader())
    shard.unlink()
    later = PackedImages.__new__(PackedImages)  # nothing open yet
    vars(later).update(data.val_dataset.__getstate__())
    with pytest.raises(DataError, match=rf"^{shard} cannot be read \(No such file or directory\): "):
        later[0]


@pytest.mark.parametrize("how", ["text", "short", "missing", "outside", "label", "count"])
def test_a_damaged_index_is_named(own_copy: Path, how: str) -> None:
    file = own_copy / "train.npz"
    arrays = dict(np.load(file))
    if how == "outside":
        arrays["offsets"][3] = arrays["shard_bytes"][0]
    elif how == "label":
        arrays["labels"][3] = 2
    elif how == "count":
        arrays = {name: values[:-1] for name, values in arrays.items()}
    np.savez(file, **arrays)
    if how == "text":
        file.write_text("hello")
    elif how == "short":
        os.truncate(file, file.stat().st_size // 2)
    elif how == "missing":
        file.unlink()
    assert mistake(own_copy).startswith(f"{file} ")


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("exploded",)


def test_an_untrusted_pack_executes_nothing(own_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Bomb()))
    Path("exploded").rmdir()  # it works
    arrays = dict(np.load(own_copy / "val.npz"))
    np.savez(own_copy / "val.npz", **{**arrays, "labels": np.array([Bomb()] * VAL, dtype=object)})
    assert "allow_pickle=False" in mistake(own_copy)
    assert not Path("exploded").exists()


def test_names_in_a_shard_are_never_used(own_copy: Path, tmp_path: Path) -> None:
    """Members of the same size under other names are the same images."""
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    shard = own_copy / "val-000000.tar"
    with tarfile.open(shard) as archive:
        members = [(member, archive.extractfile(member).read()) for member in archive]  # type: ignore[union-attr]
    with tarfile.open(shard, "w", format=tarfile.USTAR_FORMAT) as archive:
        for member, data in members:
            member.name = "../../../" + member.name
            archive.addfile(member, io.BytesIO(data))
    data = data_of(own_copy)
    assert len(list(data.val_dataloader())) == 3
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


# --- a whole run


RUN = [
    "experiment=demo",
    "model=timm",
    "model.name=test_resnet",
    "data=packed",
    "data.image_size=32",
    "data.num_workers=0",
    "trainer.max_epochs=2",
]


def test_a_run_trains_and_evaluates(packed: Path, noah: Noah) -> None:
    answer = noah("train", *RUN, f"data.root={packed}", "recipe.batch_size=8", "hydra.run.dir=run")
    assert (answer.status, answer.err) == (0, "")
    assert "packed, 2 classes" in answer.out
    assert f"of {VAL}" in noah("evaluate", "run").out


def test_two_processes_train_on_each_image_once_an_epoch(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = PackedImages.__getitem__

    def noted(images: PackedImages, index: int) -> tuple[Tensor, int]:
        with (tmp_path / f"{images.split}_{os.environ['RANK']}").open("a") as file:
            print(index, file=file)
        return read(images, index)

    monkeypatch.setattr(PackedImages, "__getitem__", noted)
    words = [*RUN, *TWO, f"data.root={packed}", f"recipe.batch_size={TRAIN}"]
    in_process_group(2, train_member, words, tmp_path)
    seen = [[int(line) for line in (tmp_path / f"train_{rank}").read_text().split()] for rank in (0, 1)]
    assert [len(part) for part in seen] == [TRAIN, TRAIN], "half of the images in each of two epochs"
    for epoch in (slice(0, TRAIN // 2), slice(TRAIN // 2, None)):
        assert sorted(seen[0][epoch] + seen[1][epoch]) == list(range(TRAIN))
    assert seen[0][: TRAIN // 2] != seen[0][TRAIN // 2 :]


def train_member(number: int, words: list[str], folder: Path) -> None:
    train(compose_config(words), folder / "run" if number == 0 else Path(os.devnull))
