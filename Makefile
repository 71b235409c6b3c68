# One virtual environment, one lock file, one verb per line of work.
VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed

.PHONY: install demo test faults check bench lock clean poison

install: $(STAMP)

$(STAMP): pyproject.toml requirements.lock
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and "framefold needs Python 3.11, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -c requirements.lock torch
	$(PY) -m pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[dev]'
	@touch $(STAMP)

demo: install  ## encode real MP4 files, answer questions, show that the second run reads the cache
	$(VENV)/bin/framefold demo

check: install  ## linter, types, no test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

test: install  ## the whole test suite
	$(PY) -m pytest

faults: install  ## real faults, the long version: kills, full disks, faltering storage; prints a table
	$(PY) -m tests.faults

poison: install  ## 10,000 damaged files and 5,000 decodes through the real decode stage
	$(PY) -m tests.poison --files 10000
	$(PY) -m tests.poison.leaks --decodes 5000

bench: install  ## prints the tables of benchmarks/RESULTS.md for this machine
	$(VENV)/bin/framefold bench store
	$(VENV)/bin/framefold bench reducers

lock: install
	@head -2 requirements.lock > requirements.lock.new
	@$(PY) -m pip freeze --exclude-editable | sed 's/+cpu//' >> requirements.lock.new && mv requirements.lock.new requirements.lock

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info demo-out
