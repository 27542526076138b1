"""The page of noah compare in a real browser; run by tests/browser.sh (make test-browser)."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from noah_lightning.analysis import compare, write_html
from test_compare import first, make_run

CHROMIUM = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
OFFLINE = "--host-resolver-rules=MAP * ~NOTFOUND"


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_opens_offline_without_errors(scheme: str, tmp_path: Path) -> None:
    for seed in (0, 1):
        make_run(tmp_path / f"runs/gap{seed}", "gap", seed, first(20 + seed))
        for n in (2, 4):
            for r in (0.25, 0.5):
                run = tmp_path / f"runs/noah{seed}{n}{r}"
                make_run(run, "noah", seed, first(20 + n + seed), head__head_num=n, head__key_ratio=r)
    write_html(compare([tmp_path / "runs"]), tmp_path / "page.html")
    picture = tmp_path / "page.png"
    preference = f"--blink-settings=preferredColorScheme={int(scheme == 'light')}"
    options = [OFFLINE, preference, "--window-size=1200,1600", f"--screenshot={picture}"]
    answer = subprocess.run(
        [*CHROMIUM, *options, (tmp_path / "page.html").as_uri()], capture_output=True, text=True, timeout=120
    )
    assert answer.returncode == 0
    assert "CONSOLE" not in answer.stderr, "no script error, no missing resource"
    pixels = np.asarray(Image.open(picture).convert("L")).astype(float)
    assert pixels.std() > 5, "the page is not blank"
    assert (np.median(pixels) > 128) == (scheme == "light")
