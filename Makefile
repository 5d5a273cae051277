# `make demo` and `make test` set up everything they need; a Python from 3.11 to 3.13 is enough.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:

# The first Python that is new enough and really runs: a name on the PATH may be a shim that only prints an error.
# Not 3.14 yet: some dependencies have no wheels for it.
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3; do \
    if "$$python" -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' >/dev/null 2>&1; \
    then echo "$$python"; break; fi; done)

BIN := .venv/bin
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --constraint requirements/constraints.txt
ARGS ?=
PYTEST_ARGS ?=

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: .venv/.installed-demo ## A whole sale on this machine: model server, gateway, buyer, one paid answer (ARGS="...")
	@$(BIN)/obol demo $(ARGS)

.PHONY: test
test: lint types layers components ## Everything that CI runs, quickest to fail first (PYTEST_ARGS="...")
	$(BIN)/python -m pytest $(PYTEST_ARGS)

.PHONY: lint
lint: .venv/.installed-dev ## Formatting and lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

.PHONY: format
format: .venv/.installed-dev ## Format the code and mend what the linter can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: types
types: .venv/.installed-dev ## Types of src and tests
	$(BIN)/mypy

.PHONY: layers
layers: .venv/.installed-dev ## Imports go down only
	$(BIN)/lint-imports --no-logo

.PHONY: components
components: .venv/.installed-dev ## Outside programs that tests talk to, cached outside the repository
	@scripts/components

.PHONY: bench
bench: components ## Benchmarks of data path, ledgers and settlement (ARGS="...")
	@scripts/bench-components
	$(BIN)/python -m bench $(ARGS)

.PHONY: lock
lock: ## Resolve all dependencies afresh and pin them in requirements/constraints.txt
	@scripts/lock "$(PYTHON)"

.PHONY: clean
clean: ## Remove the environment, caches and builds of this folder
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@if [[ -z "$(PYTHON)" ]]; then \
	    echo "No usable Python from 3.11 to 3.13 found (with the venv and ensurepip modules; on Debian: python3-venv)." >&2; \
	    echo "Install one, or name yours: make PYTHON=/path/to/python" >&2; exit 1; fi
	"$(PYTHON)" -m venv .venv

# The stamps make the second run quick; a change of the dependencies installs again.
.venv/.installed-demo: pyproject.toml requirements/constraints.txt | $(BIN)/python
	$(PIP_INSTALL) --editable '.[demo]'
	@touch $@

.venv/.installed-dev: pyproject.toml requirements/constraints.txt | $(BIN)/python
	$(PIP_INSTALL) --editable '.[test,lint]'
	@touch $@
