# geventq: what one types. Every target makes the virtual environment it needs (.venv), once;
# a change to pyproject.toml makes it install again.

SHELL  := /bin/bash
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet
# More arguments for pytest: make test ARGS='-k embedded -x'
ARGS   ?=
INTEROP := tests/interop
# How long `make soak` takes, or a little more.
MINUTES ?= 10

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-fast lint format bench soak clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.embedded ## watch jobs run and be cancelled, on a server of its own (10 s)
	@$(BIN)/geventq demo

test: $(VENV)/.dev $(INTEROP)/node_modules/.stamp ## the whole suite, unpatched, and most of it monkey-patched too
	@$(BIN)/python -m tests.support.parts whole $(ARGS)

test-fast: $(VENV)/.dev ## what to run at each change: no slow tests, no Node.js, no databases
	@$(BIN)/python -m tests.support.parts fast $(ARGS)

lint: $(VENV)/.dev ## ruff and mypy, as CI runs them
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev ## put the code into the one shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev $(INTEROP)/node_modules/.stamp ## npm bullmq and geventq side by side; prints the ratios
	$(BIN)/python -m tests.bench $(ARGS)

soak: $(VENV)/.dev ## everything breaks for MINUTES (10), then cancels, storms and many jobs; and what grows
	$(BIN)/python -m tests.fault.ordeal --minutes $$(( $(MINUTES) * 6 / 10 + 1 )) $(ARGS)
	$(BIN)/python -m tests.fault.torture --minutes $$(( $(MINUTES) * 2 / 10 ))
	$(BIN)/python -m tests.support.storm --seconds $$(( $(MINUTES) * 12 ))

clean: ## remove everything that the other targets made
	rm -rf $(VENV) $(INTEROP)/node_modules build dist *.egg-info
	rm -rf .pytest_cache .mypy_cache .ruff_cache .cache
	find geventq tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "geventq needs Python 3.11 or newer; name one: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.embedded: pyproject.toml | $(VENV)/bin/python
	$(PIP) install --editable '.[embedded]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	$(PIP) install --editable '.[dev]'
	@touch $@ $(VENV)/.embedded

# No lock file: one made by npm 11 is refused by `npm ci` over optional platform packages, so
# package.json names exact versions.
$(INTEROP)/node_modules/.stamp: $(wildcard $(INTEROP)/package.json)
	@if command -v npm >/dev/null && [ -f $(INTEROP)/package.json ]; then \
	  cd $(INTEROP) && npm install --no-package-lock --no-audit --no-fund --loglevel=error; \
	else echo "no npm here: the tests with the real npm bullmq will be skipped"; fi
	@mkdir -p $(@D) && touch $@
