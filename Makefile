# make demo   forget real facts in a real model, attack, report        (about 10 minutes)
# make test   linters, types, the whole test suite                      (about 9 minutes)
.DELETE_ON_ERROR:
export OMP_WAIT_POLICY := passive
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The CPU build of torch, where it can be had, saves gigabytes of CUDA packages; override with TORCH=torch.
TORCH ?= torch==2.13.0

.PHONY: demo test quick bench docs clean install

demo: install
	$(BIN)/expunge demo

test: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q

quick: install
	$(BIN)/python -m pytest -q -m "not real and not browser and not slow"

bench: install
	$(BIN)/python benchmarks/run.py

docs: install
	$(BIN)/python docs/generate.py

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("expunge needs Python 3.11 or newer; set PYTHON=python3.x" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -c 'import torch' 2>/dev/null \
	  || $(BIN)/python -m pip install --quiet $(TORCH) $$($(BIN)/python .ci/torch-index)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
