# Two commands do everything on a fresh machine with Python 3.11 to 3.13: `make demo`, `make test`.
#
# PYTHON       the interpreter that makes the environment; of several the first that can
# VENV         where the environment goes
# TORCH_INDEX  where the CPU build of torch comes from: auto, none, or the URL of an index
# PIP_ARGS     more arguments for pip, as --proxy or --find-links
# TEST_JOBS    how many processes share the tests
# ARGS         more arguments for the program or for pytest
PYTHON ?= python3.11 python3.12 python3.13
VENV ?= .venv
TORCH_INDEX ?= auto
PIP_ARGS ?=
TEST_JOBS ?= 2
ARGS ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-slow test-numeric lint format types bench-hippocampus bench-ct bench-type1 bench-quality bench-methods bench-evidence bench-policy clean distclean

help:  ## Show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-17s %s\n", $$1, $$2}' Makefile

venv: $(STAMP)  ## Make the environment with the tested versions

$(STAMP): pyproject.toml constraints.txt
	python=$$(./tools/first-python $(PYTHON)) && "$$python" -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_ARGS) \
	  $$(./tools/torch-args $(BIN)/pip $(TORCH_INDEX)) -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)  ## Clean a small phantom archive and show what changed
	$(BIN)/raysegclean demo $(ARGS)

# In the order of the folders: those that start a Ray come early, and no process is left alone with them.
test: $(STAMP)  ## Run the tests, without the slow ones
	$(BIN)/python -m pytest -n $(TEST_JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

test-slow: $(STAMP)  ## Run the slow tests only
	$(BIN)/python -m pytest -m slow $(ARGS)

test-numeric: $(STAMP)  ## Run what trains or measures as on a CPU of before 2013
	ONEDNN_MAX_CPU_ISA=SSE41 ATEN_CPU_CAPABILITY=default \
	  $(BIN)/python -m pytest -n $(TEST_JOBS) --dist loadfile -m 'numeric and not slow' -k 'not resume' $(ARGS)

lint: $(STAMP)  ## Check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)  ## Mend style and format where that is safe
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

types: $(STAMP)  ## Check the types (mypy, strict)
	$(BIN)/mypy

bench-hippocampus: $(STAMP)  ## Clean real cases with many kinds of errors by defaults (docs/results.md)
	$(BIN)/python benchmarks/defaults.py hippocampus $(ARGS)

bench-ct: $(STAMP)  ## The same on patients warped from one CT, 16 groups of organs; ARGS="--classes all" for 59
	$(BIN)/python benchmarks/defaults.py ct $(ARGS)

bench-type1: $(STAMP)  ## Outlines off by 1 to 8 of 256 pixels in 10 to 50 % of the cases, as Co-Seg has them
	$(BIN)/python benchmarks/defaults.py type1 $(ARGS)

bench-quality: $(STAMP)  ## Measure the quality on real data and write docs/results.md (resumes)
	$(BIN)/python benchmarks/quality.py $(ARGS)

bench-methods: $(STAMP)  ## Measure every method on every noise and write its two pages in docs/ (resumes)
	$(BIN)/python benchmarks/methods.py $(ARGS)

bench-evidence: $(STAMP)  ## Keep what the policies of the scoreboard read, in benchmarks/evidence (hours; resumes)
	$(BIN)/python benchmarks/methods.py --evidence $(ARGS)

bench-policy: $(STAMP)  ## Decide again on all stored evidence: harm, recall, what each rule is worth
	$(BIN)/python benchmarks/replaying.py $(ARGS)

clean:  ## Remove the demo and all caches
	rm -rf demo build .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean  ## Remove the environment as well
	rm -rf $(VENV)
