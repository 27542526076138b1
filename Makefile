# make demo: everything from an empty clone to a trained pair of heads, a table and a picture.
# make test: the test suite.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: install demo test coverage test-slow test-gpu test-slurm test-browser lint format wheel clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	@echo "Installing into $(VENV): PyTorch and what goes with it, some gigabytes, a few minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: install
	$(BIN)/noah demo

test: install
	$(BIN)/python -m pytest --numprocesses 2

coverage: install # takes twice as long as test
	$(BIN)/python -m pytest --numprocesses 2 --cov --cov-fail-under 90

test-slow: install
	$(BIN)/python -m pytest -m slow

test-gpu: install
	$(BIN)/python -m pytest -m gpu

test-slurm: install # installs and starts a SLURM on this host, for the time of the tests; Debian, as root
	tests/slurm.sh $(BIN)/python

test-browser: install # installs Chromium; Debian, as root
	tests/browser.sh $(BIN)/python

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: install
	$(BIN)/python -m build

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage*
