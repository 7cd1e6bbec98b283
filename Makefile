# `make demo` and `make test` do all the set-up: a .venv with the tested versions.

PYTHON ?= python3
# What `make test`, `test-slow`, `test-all` and `test-long` run: all files, or some.
TESTS ?= tests
# Such as 90: `make test-all` measures coverage, which has to be that high, in percent.
COVERAGE ?=
VENV ?= .venv
BIN = $(VENV)/bin
READY = $(VENV)/.ready
# The toy's small matrix products lose time in BLAS threads.
export OPENBLAS_NUM_THREADS ?= 1

# A file's tests run in one process: they share its runs.
PARALLEL = -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: help demo test test-slow test-all test-long lint clean

help:
	@echo "make demo   set up, then run the main job on the embedded data (runs/demo)"
	@echo "make test   set up, then run the tests for daily work"
	@echo "make test-slow  whole trainings and commands, kills, a browser, large images"
	@echo "make test-all   both at once (COVERAGE=90: with coverage)"
	@echo "make test-long  kills and damage at random, every backbone, Ray"
	@echo "make lint   set up, then run ruff and the type checker"
	@echo "make clean  remove the set-up"

demo: $(READY)
	$(BIN)/python -m experiments.demo

test: $(READY)
	$(BIN)/python -m pytest $(PARALLEL) $(TESTS)

test-slow: $(READY)
	$(BIN)/python -m pytest $(PARALLEL) -m "slow and not long" $(TESTS)

test-all: $(READY)
	$(BIN)/python -m pytest $(PARALLEL) -m "not long" $(TESTS) \
	  $(if $(COVERAGE),--cov --cov-report=term --cov-fail-under=$(COVERAGE))

test-long: $(READY)
	$(BIN)/python -m pytest $(PARALLEL) -m long $(TESTS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(READY): setup.cfg constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: Python 3.11 or later is needed, $(PYTHON) is older: make PYTHON=python3.12 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --constraint constraints.txt --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV)
