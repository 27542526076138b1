"""Whatever comes in, from the command line or in a file: a result, or an error that the user can mend.

``make fuzz`` looks longer, guided by coverage.
"""

import string
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fuzz.readers import READERS
from fuzz.seeds import seeds
from noah_lightning.config.compose import compose_config, override
from noah_lightning.errors import UserError

FEW = settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)
MANY = settings(max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck))

DEMO = compose_config(["experiment=demo"])
KEYS = [
    *(
        f"{group}.{key}"
        for group in ("trainer", "recipe", "head", "model", "data")
        for key in DEMO.model_dump()[group]
    ),
    "seed",
]
WORDS = st.sampled_from(
    ["null", "true", "-1", "1e999", "nan", "[", "{", "a,b", "${seed}", "${nope}", "'", "\\", "[[["]
)
VALUES = st.one_of(WORDS, st.integers().map(str), st.floats().map(str), st.text(string.printable, max_size=12))
SIGNS = st.sampled_from(["", "+", "++", "~"])
GROUPS = st.sampled_from(["head", "model", "data", "recipe", "trainer", "logger", "experiment", "sweep", "hydra/x"])
OVERRIDES = st.one_of(
    st.builds("{}{}={}".format, SIGNS, st.one_of(st.sampled_from(KEYS), GROUPS), VALUES),
    st.text(string.printable, max_size=20),
)


def require_clean(words: list[str]) -> None:
    with suppress(UserError):
        compose_config(["experiment=demo", *words])


def require_clean_override(pair: str) -> None:
    with suppress(UserError):
        override(DEMO, [pair])


def cut_and_changed(name: str) -> st.SearchStrategy[bytes]:
    """One of our own files with a few bytes changed, or cut short, or any bytes at all."""

    def change(seed: bytes, changes: list[tuple[int, bytes]], length: float) -> bytes:
        data = bytearray(seed)
        for place, piece in changes:
            place %= len(data)
            data[place : place + len(piece)] = piece
        return bytes(data[: int(len(data) * length) + 1])

    changes = st.lists(st.tuples(st.integers(0, 10**6), st.binary(min_size=1, max_size=4)), max_size=5)
    ours = st.builds(change, st.sampled_from(seeds()[name]), changes, st.sampled_from([1.0, 1.0, 1.0, 0.5, 0.9]))
    return st.one_of(ours, st.binary(max_size=60))


@FEW
@given(st.lists(OVERRIDES, min_size=1, max_size=2))
def test_any_override_is_a_setting_or_a_mistake(words: list[str]) -> None:
    require_clean(words)


@FEW
@given(st.builds("{}={}".format, st.sampled_from(KEYS), VALUES))
def test_any_override_of_a_run_is_a_setting_or_a_mistake(pair: str) -> None:
    require_clean_override(pair)


@pytest.mark.parametrize("name", READERS)
def test_any_file_is_read_or_refused(name: str) -> None:
    FEW(given(cut_and_changed(name))(READERS[name]))()


@pytest.mark.parametrize("name", READERS)
def test_our_own_files_are_read(name: str) -> None:
    for seed in seeds()[name]:
        READERS[name](seed)


@pytest.mark.slow
@MANY
@given(st.lists(OVERRIDES, min_size=1, max_size=3))
def test_very_many_overrides(words: list[str]) -> None:
    require_clean(words)


@pytest.mark.slow
@MANY
@given(st.builds("{}={}".format, st.sampled_from(KEYS), VALUES))
def test_very_many_overrides_of_a_run(pair: str) -> None:
    require_clean_override(pair)


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_very_many_files(name: str) -> None:
    MANY(given(cut_and_changed(name))(READERS[name]))()
