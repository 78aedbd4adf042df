# All that a fresh machine needs is a Python >= 3.11: `make test` and `make demo` set up the rest.
# Another Python: make PYTHON=/path/to/python test

.DEFAULT_GOAL := help
.PHONY: help env test lint format demo bench gpu clean

export PYTHON

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-7s %s\n", $$1, $$2}' Makefile

env: .venv/.stamp ## Make .venv from requirements.lock

test: lint ## Lint, then run the tests
	.venv/bin/pytest -q -n 2 --dist worksteal

lint: .venv/.stamp ## Check style, format and types
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/pyright

format: .venv/.stamp ## Format, and fix what can be fixed
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

demo: .venv/.stamp ## Four minutes on two cores: what prototypes do, and a page about it
	.venv/bin/prototile demo --out build/demo --no-open

bench: .venv-bench/.stamp ## Run the benchmarks, beside other libraries
	.venv-bench/bin/python benchmarks/assignments.py
	.venv-bench/bin/python benchmarks/views.py
	.venv-bench/bin/python benchmarks/training.py
	.venv-bench/bin/python benchmarks/audit.py
	.venv-bench/bin/python benchmarks/evaluation.py

gpu: ## Run GPU tests, benchmarks and experiments (DATA=ROOT), with the machine's own torch if it sees a GPU
	scripts/gpu $(DATA)

clean: ## Remove all that make made
	rm -rf .venv .venv-bench .tools .hypothesis .pytest_cache .ruff_cache build dist

.venv/.stamp: pyproject.toml requirements.lock scripts/bootstrap
	scripts/bootstrap .venv
	@touch $@

.venv-bench/.stamp: pyproject.toml requirements.lock scripts/bootstrap
	scripts/bootstrap .venv-bench bench
	@touch $@
