"""timm's pretrained weights, and models of the hub, without a network."""

import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import pytest
from safetensors.torch import save_file

from conftest import TINY, Answer
from noah_lightning.errors import UnknownModelError, WeightsError
from noah_lightning.models import timm_models
from noah_lightning.models.classifier import create_model
from weight_files import HEADS, assert_same_weights, trained


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", ["test_resnet", "test_resnet.r160_in1k", "vit_small_patch8_224"])
def test_pretrained_without_network_is_one_line_at_once(name: str, head: str) -> None:
    started = time.monotonic()
    with pytest.raises(
        WeightsError, match=f"pretrained weights of {name} .*model.weights=.*pretrained=false"
    ) as error:
        create_model(name, head, 10, pretrained=True)
    assert "\n" not in str(error.value)
    assert time.monotonic() - started < 10


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("head", HEADS)
def test_a_hub_model_without_network_is_one_line(head: str) -> None:
    with pytest.raises(UnknownModelError, match="hf-hub:timm/test_resnet is not available") as error:
        create_model("hf-hub:timm/test_resnet", head, 10)
    assert "\n" not in str(error.value)


@pytest.fixture(params=["refused", "silent"])
def hub(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """A hub that nobody answers for, or that takes calls and says nothing, and an empty cache."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        if request.param == "refused":
            server.close()
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(timm_models, "PATIENCE", 0.5)
        yield address


@pytest.mark.parametrize(
    ("overrides", "way_out"),
    [
        (["model.pretrained=true"], "set model.weights=FILE, or model.pretrained=false"),
        (["model.name=hf_hub:timm/test_resnet"], "set model.name=ARCHITECTURE model.weights=FILE"),
    ],
)
def test_without_a_hub_a_run_says_what_it_tries_and_gives_up_soon(
    noah: Callable[..., Answer], hub: str, overrides: list[str], way_out: str
) -> None:
    started = time.monotonic()
    answer = noah("train", *TINY, *overrides)
    assert time.monotonic() - started < 10
    assert answer.status == 2
    assert re.search(rf"^weights  looking for \S+ at {hub}$", answer.out, re.MULTILINE)
    assert answer.err.startswith("noah: ")
    assert answer.err.endswith(f"({hub} does not answer, and the cache has no copy); {way_out}\n")
    assert answer.err.count("\n") == 1
    assert not huggingface_hub.constants.HF_HUB_OFFLINE


def test_without_a_hub_its_cache_is_used(hub: str, tmp_path: Path) -> None:
    source = trained("test_resnet", num_classes=1000)
    folder = tmp_path / "cache" / "models--timm--test_resnet.r160_in1k"
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    save_file(source.state_dict(), folder / "snapshots" / "abc" / "model.safetensors")
    assert_same_weights(create_model("test_resnet", pretrained=True).state_dict(), source.state_dict())
