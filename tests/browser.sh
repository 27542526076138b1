#!/bin/sh
# make test-browser: the page of noah compare in a headless Chromium without network. Needs root on Debian or Ubuntu.
set -eu
PYTHON=${1:-.venv/bin/python}

command -v chromium >/dev/null || DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium
"$PYTHON" -m pytest -m browser tests/test_browser.py
