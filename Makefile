# The everyday commands; each works on a machine with nothing but make and Python 3.11 or newer.
# PYTHON=... chooses the interpreter of the virtual environment .venv.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup test test-all test-tpu test-gpu test-models lint quickstart release

VENV := .venv
EXTRAS := dev
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
PIP := $(BIN)/python -m pip --quiet --no-input --disable-pip-version-check
PYTEST := $(BIN)/python -m pytest -q -n 2 --dist loadfile

help:
	@echo 'make quickstart   train a small model here and let it write'
	@echo 'make setup        install into $(VENV)'
	@echo 'make test         run the tests'
	@echo 'make test-all     run the slow tests too'
	@echo 'make test-tpu     compile for TPUs that are not here (installs libtpu, 1.5 GB, into .venv-tpu)'
	@echo 'make test-gpu     compile for GPUs that are not here (.venv-gpu; needs nvcc 13, or CUDA_HOME)'
	@echo 'make test-models  compare with other programs (installs them, 2 GB, into .venv-models)'
	@echo 'make lint         check format, style and types'
	@echo 'make release      build wheel and source archive into dist/, and use the wheel elsewhere (.venv-release)'

setup: $(STAMP)

test: $(STAMP)
	@$(PYTEST)

test-all: $(STAMP)
	@$(PYTEST) -m "not tpu and not gpu and not models"

# The compilers of hardware that isn't here, and other programs, come into environments of their own.
test-tpu: EXTRAS := dev,tpu
test-gpu: EXTRAS := dev,compile-gpu
test-models: EXTRAS := dev,models
test-tpu test-gpu: TESTS := tests/compile
test-tpu test-gpu test-models: test-%:
	@$(MAKE) --no-print-directory VENV=.venv-$* EXTRAS=$(EXTRAS) setup
	@.venv-$*/bin/python -m pytest -q -n 0 -m $* $(TESTS)

lint: $(STAMP)
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy bitttt_jax
	@$(BIN)/clang-format --dry-run --Werror bitttt_jax/native/src/*

quickstart: $(STAMP)
	@$(BIN)/bitttt train --config=quickstart --workdir=runs/quickstart
	@$(BIN)/bitttt evaluate --model=runs/quickstart
	@$(BIN)/bitttt generate --model=runs/quickstart --prompt="    def __init__(self" --temperature=0.7

release:
	@$(MAKE) --no-print-directory VENV=.venv-release EXTRAS=release setup
	@.venv-release/bin/python release/build.py
	@.venv-release/bin/python release/check.py dist/*.whl

# An environment that can't run pip, or isn't of the PYTHON asked for, counts as none.
IS_USABLE = $(BIN)/python -c 'import pip' && \
  { [ -z "$(PYTHON)" ] || [ "$$($(PYTHON) --version)" = "$$($(BIN)/python --version)" ]; }
$(shell { $(IS_USABLE); } >/dev/null 2>&1 || rm -f $(STAMP))

# The newest Python that really runs (a pyenv shim may not) and can make environments (Debian's
# may not). The stamp is written last, so that an interrupted installation is taken up again.
CANDIDATES := $(or $(PYTHON),python3.14 python3.13 python3.12 python3.11 python3)
$(STAMP): setup.cfg setup.py pyproject.toml $(wildcard bitttt_jax/native/src/*)
	@rm -f $@
	@{ $(IS_USABLE); } >/dev/null 2>&1 || { \
	  for python in $(CANDIDATES) ''; do \
	    [ -n "$$python" ] || { echo >&2 'error: none of $(CANDIDATES) is Python 3.11 or newer with venv and ensurepip'; exit 2; }; \
	    $$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break; \
	  done; \
	  echo "making $(VENV) with $$($$python --version)"; \
	  rm -rf $(VENV) && $$python -m venv $(VENV); \
	}
	@echo 'installing into $(VENV)'
	@$(PIP) install --upgrade pip
	@PYTHONWARNINGS=ignore $(PIP) install -e '.[$(EXTRAS)]'
	@touch $@
