# The front door. Every target sets itself up; a new machine needs Python 3.11+, a C compiler and make.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/pip --disable-pip-version-check -q

# The native kernel is part of the install, so a change of its source installs again.
SOURCES := pyproject.toml $(wildcard broker/ottla_wire/records/*.pyx broker/ottla_wire/records/*.pxi)

.DEFAULT_GOAL := help
.PHONY: help install demo demo-exactly-once test check format bench soak peers clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 20

$(BIN)/pip:
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -U pip

$(VENV)/.installed: $(SOURCES) | $(BIN)/pip
	$(PIP) install -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(PIP) install --group dev
	@touch $@

$(VENV)/.peers: $(VENV)/.dev
	$(PIP) install --group peers
	@touch $@

install: $(VENV)/.installed ## the package, editable, in .venv

demo: $(VENV)/.installed ## the main job on the embedded broker: make demo [INPUT=my.jsonl KEY=field]
	$(BIN)/python samples/flights/demo.py $(if $(INPUT),--input $(INPUT)) $(if $(KEY),--key $(KEY))

$(VENV)/.database: $(VENV)/.installed
	$(BIN)/python -c "import sqlalchemy" 2> /dev/null || $(PIP) install -e ".[database]"
	@touch $@

demo-exactly-once: $(VENV)/.database ## payments while processes are killed, and the proof: make demo-exactly-once [SECONDS=60 SEED=1 WORKERS=3]
	$(BIN)/python samples/payments/demo.py --seconds $(or $(SECONDS),60) $(if $(SEED),--seed $(SEED)) $(if $(WORKERS),--workers $(WORKERS))

test: $(VENV)/.peers ## every test, in two processes; peers that are not there are skipped and listed at the end
	$(BIN)/python -m pytest -n 2 $(ARGS)

check: $(VENV)/.dev ## format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev ## write what `make check` asks of the format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.peers ## ours beside its peers, about half an hour: make bench [ARGS="--rounds 1 --only produce --help"]
	$(BIN)/python -m benchmarks $(ARGS)

soak: $(VENV)/.peers ## what takes too long for every change: kills, 20,000 simulated seeds, 2,000 examples for each property
	OTTLA_CRASH_ROUNDS=20 OTTLA_SIMULATION_SEEDS=20000 $(BIN)/python -m pytest tests/crash tests/framework/database/test_killed_relays.py tests/simulation $(ARGS)
	$(BIN)/python -m pytest tests --hypothesis-profile=soak -m "not crash" $(ARGS)

peers: $(VENV)/.peers ## the other clients and brokers that tests and benchmarks compare with
	$(BIN)/python tests/support/apache_kafka.py

clean: ## everything that can be made again
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
