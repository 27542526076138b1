"""MS-COCO as a multi-label data set, on a folder of seven images made here."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import Answer
from noah_lightning.data import create_data
from noah_lightning.data.coco import CocoDataModule, parse_instances
from noah_lightning.errors import DataError

Noah = Callable[..., Answer]
CATEGORIES = [{"id": 18, "name": "dog"}, {"id": 1, "name": "person"}, {"id": 3, "name": "car"}]  # not in order
# Categories of the annotations of each image; 7 has none. One of a crowd, two of the same category.
IMAGES: dict[str, dict[int, list[int]]] = {"train": {9: [3], 4: [1, 18, 1], 7: []}, "val": {2: [18], 5: [3, 1]}}


def annotations(images: dict[int, list[int]]) -> dict[str, Any]:
    listed = [{"id": image, "file_name": f"{100 - image:012}.jpg", "width": 48, "height": 40} for image in images]
    found = [
        {"image_id": image, "category_id": category, "iscrowd": int(category == 18), "segmentation": []}
        for image, categories in images.items()
        for category in categories
    ]
    return {"info": {}, "images": listed, "annotations": found, "categories": CATEGORIES}


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    root = tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    for split, images in IMAGES.items():
        content = annotations(images)
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))
        (root / f"{split}2017").mkdir()
        for each in content["images"]:
            color = (10 * each["id"], 20, 30)
            Image.new("RGB", (48, 40), color).save(root / f"{split}2017" / each["file_name"], quality=95)
    return root


def module(root: Path, **settings: Any) -> CocoDataModule:
    common = {"root": str(root), "year": 2017, "num_classes": 3, "image_size": 32, "num_workers": 0}
    data = create_data("coco", **(common | settings))
    assert isinstance(data, CocoDataModule)
    return data


def test_labels_are_sets_of_categories_in_the_order_of_their_ids(coco: Path) -> None:
    data = module(coco)
    data.setup("fit")
    assert data.multilabel
    assert data.class_names == ["person", "car", "dog"]
    assert data.val_dataset is not None
    assert data.train_dataset is not None
    found = [data.val_dataset[i] for i in range(len(data.val_dataset))]
    assert [label.tolist() for _, label in found] == [[1, 1, 0], [0, 0, 1]]  # 95.jpg, 98.jpg
    assert [round(image[0].float().mean().item(), -1) for image, _ in found] == [50, 20]
    assert found[0][0].shape == (3, 32, 32)
    assert found[0][1].dtype == torch.float32
    assert [data.train_file(i) for i in range(2)] == [coco / f"train2017/{n:012}.jpg" for n in (91, 96)]
    assert [data.train_dataset[i][1].tolist() for i in range(2)] == [[0, 1, 0], [1, 0, 1]]


def test_images_without_annotations_are_left_out(coco: Path) -> None:
    data = module(coco)
    data.setup("fit")
    assert data.train_dataset is not None
    assert len(data.train_dataset) == 2
    (coco / f"train2017/{93:012}.jpg").unlink()  # of image 7: it is not needed
    module(coco).setup("fit")


def test_validation_does_not_need_the_training_images(coco: Path) -> None:
    (coco / "annotations/instances_train2017.json").unlink()
    module(coco).setup("validate")


def test_batches_have_multi_hot_labels_and_padding_of_their_shape(coco: Path) -> None:
    data = module(coco, batch_size=2)
    data.setup("fit")
    images, labels = next(iter(data.train_dataloader()))
    assert (images.shape, images.dtype, labels.shape) == ((2, 3, 32, 32), torch.uint8, (2, 3))
    padded = data.val_dataloader().dataset
    assert padded[2][1].tolist() == [-1, -1, -1]


def test_coco_trains(coco: Path, noah: Noah) -> None:
    words = ["data=coco", f"data.root={coco}", "data.year=2017", "data.num_classes=3", "data.image_size=32"]
    words += ["data.num_workers=0", "recipe=plain", "recipe.batch_size=2", "recipe.loss=bce", "trainer.max_epochs=1"]
    answer = noah("train", "model=timm", "model.name=test_resnet", *words, "hydra.run.dir=run")
    assert answer.status == 0, answer.err
    assert "(2 images)" in answer.out
    assert 0 < json.loads(Path("run/results.json").read_text())["map"] <= 100


def _damaged(content: dict[str, Any]) -> Any:
    return {**content, "annotations": [{"image_id": 2, "category_id": 77}]}


MISTAKES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no root": (lambda root: root.rename(root.parent / "gone"), "coco does not exist: it must hold annotations/"),
    "no annotations": (
        lambda root: (root / "annotations/instances_val2017.json").unlink(),
        "coco has no annotations/instances_val2017.json",
    ),
    "not JSON": (
        lambda root: (root / "annotations/instances_val2017.json").write_text('{"images": ['),
        "instances_val2017.json cannot be read as JSON: Expecting value",
    ),
    "nested": (
        lambda root: (root / "annotations/instances_val2017.json").write_text("[" * 100_000),
        "instances_val2017.json cannot be read as JSON: ",
    ),
    "other content": (
        lambda root: (root / "annotations/instances_val2017.json").write_text('{"images": []}'),
        "is not a file of COCO's instance annotations: no 'categories'",
    ),
    "a list": (
        lambda root: (root / "annotations/instances_val2017.json").write_text("[1]"),
        "is not a file of COCO's instance annotations",
    ),
    "unknown category": (
        lambda root: (root / "annotations/instances_val2017.json").write_text(
            json.dumps(_damaged(annotations(IMAGES["val"])))
        ),
        "an annotation has the category 77, which is not listed",
    ),
    "no folder": (lambda root: (root / "val2017").rename(root / "val"), "val2017 cannot be read: No such file"),
    "missing image": (
        lambda root: (root / f"val2017/{95:012}.jpg").unlink(),
        "1 image of 2 missing in",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_reported_in_one_line(coco: Path, name: str) -> None:
    damage, says = MISTAKES[name]
    damage(coco)
    with pytest.raises(DataError) as error:
        module(coco).setup("fit")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_another_number_of_classes_is_reported(coco: Path) -> None:
    with pytest.raises(DataError, match=r"data\.num_classes=80, but the train set has 3 classes"):
        module(coco, num_classes=80).setup("fit")


def test_annotations_of_unlisted_images_are_refused() -> None:
    content = annotations({2: [18]})
    content["annotations"].append({"image_id": 3, "category_id": 1})
    with pytest.raises(ValueError, match="images that are not listed"):
        parse_instances(content)


def test_parsing_agrees_with_a_plain_loop() -> None:
    random = np.random.default_rng(0)
    images = {int(i): random.choice([1, 3, 18], size=random.integers(0, 5)).tolist() for i in random.permutation(60)}
    content = annotations(images)
    names, files, labels = parse_instances(content)
    by_file = {each["file_name"]: images[each["id"]] for each in content["images"]}
    assert names == ["person", "car", "dog"]
    assert files == sorted(file for file, categories in by_file.items() if categories)
    for file, label in zip(files, labels, strict=True):
        assert label.tolist() == [category in by_file[file] for category in (1, 3, 18)]
