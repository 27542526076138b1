"""``make fuzz``: python -m fuzz.atheris_reader READER SECONDS, in tests/. Exit status 0: nothing but clean errors."""

import sys
import tempfile
from pathlib import Path

import atheris
import torch._weights_only_unpickler  # before the instrumented imports, which would else take minutes over torch
import torchvision  # noqa: F401

with atheris.instrument_imports(include=["noah_lightning"]):
    from fuzz.readers import READERS
from fuzz.seeds import seeds

unpickler = torch._weights_only_unpickler.Unpickler
unpickler.load = atheris.instrument_func(unpickler.load)  # what a checkpoint makes run
name, seconds = sys.argv[1:]
corpus = Path(tempfile.mkdtemp(prefix="noah-fuzz-corpus-"))
for number, seed in enumerate(seeds()[name]):
    (corpus / str(number)).write_bytes(seed)
options = [f"-max_total_time={seconds}", "-max_len=20000", "-timeout=20", "-rss_limit_mb=6000", "-verbosity=0"]
atheris.Setup(
    [sys.argv[0], str(corpus), "-artifact_prefix=/tmp/noah-fuzz-", "-print_final_stats=1", *options], READERS[name]
)
atheris.Fuzz()
