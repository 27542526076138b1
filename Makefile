# make demo: install everything, train both heads, print a table and draw a picture.
# make test: run the test suite.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: install demo test coverage test-slow test-faults test-gpu test-slurm test-ray test-browser fuzz lint format wheel clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	@echo "Installing PyTorch and other packages into $(VENV): several gigabytes, a few minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: install
	$(BIN)/noah demo

test: install
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal

coverage: install # twice as slow as test
	$(BIN)/python -m pytest --numprocesses 2 --cov --cov-fail-under 90

test-slow: install
	$(BIN)/python -m pytest -m slow

test-faults: install # SIGKILL and SIGTERM at random times, with one and two processes: about 15 minutes
	$(BIN)/python tests/faults.py --kills 20
	$(BIN)/python tests/faults.py --kills 20 --devices 2
	$(BIN)/python tests/faults.py --kills 10 --signal SIGTERM
	$(BIN)/python tests/faults.py --kills 10 --signal SIGTERM --devices 2
	$(BIN)/python tests/faults.py --kills 3 --signal SIGUSR1

test-gpu: install
	$(BIN)/python -m pytest -m gpu

test-slurm: install # installs SLURM on this host and runs it during the tests; requires Debian and root
	tests/slurm.sh $(BIN)/python

test-ray: install # installs Ray, several hundred megabytes
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[ray]'
	$(BIN)/python -m pytest -m ray

test-browser: install # installs Chromium; requires Debian and root
	tests/browser.sh $(BIN)/python

fuzz: install # one minute per file reader; Atheris is installed separately, as it has no wheels for some versions of Python
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
