# make demo: everything from an empty clone to a trained pair of heads, a table and a picture.
# make test: the test suite.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: install demo test coverage test-slow test-faults test-gpu test-slurm test-browser fuzz lint format wheel clean

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

test-faults: install # twenty times SIGKILL and SIGTERM, with one process and with two: a quarter of an hour
	$(BIN)/python tests/faults.py --kills 20
	$(BIN)/python tests/faults.py --kills 20 --devices 2
	$(BIN)/python tests/faults.py --kills 10 --signal SIGTERM
	$(BIN)/python tests/faults.py --kills 10 --signal SIGTERM --devices 2
	$(BIN)/python tests/faults.py --kills 3 --signal SIGUSR1

test-gpu: install
	$(BIN)/python -m pytest -m gpu

test-slurm: install # installs and starts a SLURM on this host, for the time of the tests; Debian, as root
	tests/slurm.sh $(BIN)/python

test-browser: install # installs Chromium; Debian, as root
	tests/browser.sh $(BIN)/python

fuzz: install # a minute for each reader of files; Atheris is kept apart, as not every Python has a wheel of it
	test -d $(VENV)/atheris || $(BIN)/python -m pip install --quiet --target $(VENV)/atheris 'atheris>=3'
	cd tests && for reader in config checkpoint shard results; do \
		OMP_NUM_THREADS=1 PYTHONPATH=../$(VENV)/atheris:. ../$(BIN)/python -m fuzz.atheris_reader $$reader 60 || exit 1; \
	done

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: install
	$(BIN)/python -m build

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage*
