"""Files as we write them, for the fuzzers to start from."""

import argparse
import io
import json

import numpy as np
import torch
import yaml
from PIL import Image

from noah_lightning.config.compose import compose_config
from noah_lightning.data.pack_format import Index


def saved(content: object, **options: bool) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def image(form: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (9, 7), (200, 30, 30)).save(file, form)
    return file.getvalue()


def npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    return file.getvalue()


def pack_index() -> bytes:
    file = io.BytesIO()
    one = np.array([1])
    Index(one, one, one * 0, one, one.astype(np.uint32), (one * 0).astype(np.int32)).write(file)
    return file.getvalue()


def seeds() -> dict[str, list[bytes]]:
    """By the names of the readers."""
    state = {"weight": torch.ones(2)}
    state_dict = {"state_dict": state, "epoch": 1, "args": argparse.Namespace(lr=0.1), "best_acc": np.float64(1.5)}
    facts = {"format": "noah_lightning pack", "version": 1, "classes": ["a"], "splits": {"val": {"images": 1}}}
    small = "{seed: 0, model: {name: resnet18, args: {}}, head: {name: gap}, data: {}, recipe: {}, trainer: {}}"
    said = npz(labels=np.array([0]), guesses=np.array([0]), class_names=np.array(["a"]))
    return {
        "config": [yaml.safe_dump(compose_config(["experiment=demo"]).model_dump()).encode(), small.encode()],
        "checkpoint": [saved(state), saved(state_dict), saved(state_dict, _use_new_zipfile_serialization=False)],
        "shard": [
            b"\x00" + json.dumps(facts).encode(),
            b"\x60" + pack_index(),
            *(b"\xff" + image(form) for form in ("JPEG", "PNG", "GIF", "WEBP")),
        ],
        "results": [b'{"correct": 1, "images": 1}', b"epoch,val/top1\n0,1.5\n", said],
    }
