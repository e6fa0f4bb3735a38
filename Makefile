# Everything goes through .venv, which `setup` makes and renews when pyproject.toml or constraints.txt change.
# TEST=path narrows `make test`; PYTHON=python3.12 chooses the interpreter of a new environment.

BIN := .venv/bin
PYTHON ?= python3
TEST ?=
MINUTES ?= 20

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-sampler test check torture bench docs verdicts format clean

help: ## say what each target does
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## make or renew the environment in .venv
	@PYTHON=$(PYTHON) scripts/setup.sh

demo: setup ## distil real pictures to ten a class and measure them (at most five minutes)
	@$(BIN)/python -m attar.demo

demo-sampler: setup ## teach a network to draw emoji by name in one or two steps, and show it beside its teacher (15 minutes)
	@$(BIN)/python -m attar.demo_sampler

test: setup ## run the whole test suite
	@scripts/test.sh $(TEST)

check: setup ## formatting, lint, types, import layers, versions, documentation
	@scripts/check.sh

torture: setup ## hurt runs in every way for MINUTES=20 and print what was lost
	@PYTHONPATH=tests:tests/faults OMP_NUM_THREADS=1 $(BIN)/python tests/faults/torture.py --minutes $(MINUTES)

bench: setup ## print the table of speed ratios
	@$(BIN)/python -m benchmarks

docs: setup ## build the documentation site in site/
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet && echo "documentation: site/index.html"

verdicts: setup ## write results/README.md from the result files
	@$(BIN)/python scripts/write_verdicts.py

format: setup ## format the source and mend what the linter can
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

clean: ## remove what the tools leave behind; runs/ and .venv stay
	@rm -rf site build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
