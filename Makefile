# `make help` lists what there is.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PYTEST_ARGS ?=
ROUNDS ?= 1000
RUNS ?= 100
INPUTS ?= 1000000
GUIDED ?= 10000
SEEDS ?= 1000
FIRST ?= 1
JOBS ?= 2

.DEFAULT_GOAL := help
.PHONY: help run test test-lowest simulate torture demo bench lint format clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

run: $(VENV)/server ## Start the daemon on 127.0.0.1:7828, states in ~/.local/state/statestored
	@exec $(BIN)/statestored

test: $(VENV)/dev tests/foreign/node_modules ## Run all tests
	tests/install-tools.sh
	$(BIN)/python -m pytest --numprocesses 4 --dist worksteal $(PYTEST_ARGS)

test-lowest: $(VENV)/dev tests/foreign/node_modules ## Run the unit tests with the lowest versions that pyproject.toml allows
	tests/install-tools.sh
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(VENV)-lowest
	$(BIN)/uv pip install --quiet --python $(VENV)-lowest/bin/python --resolution lowest-direct --editable '.[dev]'
	$(VENV)-lowest/bin/python -m pytest --numprocesses 4 --dist worksteal $(PYTEST_ARGS) tests/client tests/server

simulate: $(VENV)/dev ## The whole system in one process, in virtual time: SEEDS=1000 from FIRST=1 on, in JOBS=2 processes; its last line says how to go on
	$(BIN)/python -m tests.simulation --seeds $(SEEDS) --first $(FIRST) --jobs $(JOBS)

torture: $(VENV)/dev $(VENV)/fuzz ## The long tests: kills, interrupts, histories, real mail, fuzzed input, hostile clients
	tests/install-tools.sh
	$(BIN)/python -m tests.torture --rounds $(ROUNDS) --fsync always
	$(BIN)/python -m tests.torture --rounds $(ROUNDS) --fsync everysec
	$(BIN)/python -m tests.abuse interrupts 1000000
	$(BIN)/python -m tests.abuse forks 1000
	$(BIN)/python -m tests.consistency --runs $(RUNS)
	$(BIN)/python -m tests.mail
	$(BIN)/python -m tests.fuzz --inputs $(INPUTS)
	@if $(BIN)/python -c 'import atheris' 2>/dev/null; then $(BIN)/python -m tests.fuzz --guided --inputs $(GUIDED); \
	    else echo "NOT RUN: the fuzzer that is guided, for there is no atheris for this system or this Python"; fi
	$(BIN)/python -m tests.hostile

demo: $(VENV)/dev ## Three real mail processes share one store, which is restarted in the middle
	$(BIN)/python -m examples.demo

bench: $(VENV)/bench ## Measure beside Redis, memcached and shelve, side by side
	benchmarks/install.sh
	$(BIN)/python -m benchmarks

lint: $(VENV)/dev ## ruff and mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(VENV)/dev ## Put the code into the form that lint asks for
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean: ## Remove what make made
	rm -rf .venv* benchmarks/.build tests/foreign/node_modules

# A stamp for each set of requirements. `python3` must be 3.11 or newer.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "$(PYTHON) is older than Python 3.11: name a newer one, as in  make PYTHON=python3.13 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/server $(VENV)/dev $(VENV)/fuzz $(VENV)/bench: $(VENV)/%: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	@touch $@

tests/foreign/node_modules: tests/foreign/package-lock.json
	@command -v npm >/dev/null || tests/foreign/install-node.sh
	npm ci --prefix tests/foreign --no-audit --no-fund
	@touch $@
