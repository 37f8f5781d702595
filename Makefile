# Every target makes its own environment when it is not there: .venv, filled from constraints.txt.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export HF_HUB_OFFLINE ?= 1

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $(READY)

.PHONY: demo docs test test-slow test-crash test-fuzz test-all test-hf test-min test-wheel test-docker-steps lint types fix bench bench-check house clean help

demo: $(READY)  ## train four tasks on a support desk's messages, compare, use the model as a stranger
	$(BIN)/python configs/quickstart/demo.py configs/quickstart.yaml

docs: $(READY)  ## docs/ as a site that needs no network, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

test: $(READY)  ## unit tests, offline, minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

test-slow: $(READY)  ## tests over processes and of fresh processes, minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m slow

test-crash: $(READY)  ## a training killed at 20 random moments ends as the undisturbed one, minutes
	OMP_NUM_THREADS=1 $(BIN)/python tests/crash.py

test-fuzz: $(READY)  ## random recipes, files, folders, tags and texts, 10 minutes at most; POLYHEAD_FUZZ=10 for more
	OMP_NUM_THREADS=1 timeout $$((600 * $${POLYHEAD_FUZZ:-1})) $(BIN)/python -m pytest -m fuzz -n 2 tests/fuzz

test-all: test test-slow test-fuzz test-crash test-hf test-wheel  ## everything, HF's model tests and the wheel too

test-hf: $(READY)  ## HF's own common model tests against PolyheadModel
	HF_HUB_OFFLINE=0 $(BIN)/python tests/hf_common.py

test-min: $(READY)  ## unit tests on the oldest transformers that pyproject.toml allows
	$(PYTHON) -m venv .venv-min
	.venv-min/bin/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)"
	.venv-min/bin/python -m pip install --quiet -e ".[dev]" "transformers==$$(sed -n 's/.*"transformers>=\([0-9.]*\)".*/\1/p' pyproject.toml).*"
	.venv-min/bin/python -m pytest

test-wheel: $(READY)  ## build the wheel, install it alone, import and predict from another folder
	$(BIN)/python tests/wheel.py

test-docker-steps: $(READY)  ## each step of the Dockerfile without docker, in an environment of its own; minutes, downloads
	$(BIN)/python tests/docker_steps.py

lint: $(READY)  ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)  ## pyright
	$(BIN)/pyright --pythonpath $(BIN)/python

fix: $(READY)  ## ruff, mending what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)  ## benchmarks that run on a CPU, 20 minutes; POLYHEAD_DATA names the data sets
	$(BIN)/python benchmarks/bench.py

bench-check: $(READY)  ## the same, compared with the committed ratios of this kind of CPU; fails where one is worse
	$(BIN)/python benchmarks/bench_check.py $(if $(RESULTS),--results $(RESULTS))

house: $(READY)  ## measures of the source: sizes, rooms, arrows; AGAINST=REV beside a revision
	$(BIN)/python benchmarks/house.py $(if $(AGAINST),--against $(AGAINST))

clean:  ## remove environments, builds and runs
	rm -rf .venv .venv-min build dist runs site *.egg-info .pytest_cache .ruff_cache .hypothesis

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 20
