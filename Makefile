# Everything from a bare checkout: `make demo` runs the main job, `make test` passes the tests.

PYTHON ?= python3
BIN := .venv/bin
SCRATCH := target/scratch

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint lint-sql bench docs lock clean test-dbt test-python test-adapter \
	test-long test-server test-letta soak sweep fuzz examples

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

setup: $(BIN)/.installed profiles.yml ## .venv from the lock file, and profiles.yml
	@$(BIN)/python -m loader init

$(BIN)/.installed: requirements.lock adapter/pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e ./adapter
	touch $@

profiles.yml:
	cp profiles.example.yml $@

demo: setup ## land the examples, build, and print who spent what
	$(BIN)/python -m loader examples || [ $$? -eq 1 ]  # two lines are no records, on purpose
	$(BIN)/python -m loader prices
	$(BIN)/python -m loader billing examples/subscriptions.csv
	$(BIN)/python -m loader bills examples/bills/*.json examples/bills/*.csv
	$(BIN)/dbt --quiet build --exclude-resource-type unit_test  # `make test` runs those
	@$(BIN)/dbt --quiet run-operation who_spent_what

test: setup ## every test
	@$(MAKE) --no-print-directory -j2 $(filter --output-sync,$(.FEATURES:%=--%)) lint test-dbt test-adapter
	@$(MAKE) --no-print-directory test-python

test-dbt: setup ## the project built on a scratch path with its dbt tests
	rm -rf $(SCRATCH) && mkdir -p $(SCRATCH)
	CHDB_PATH=$(SCRATCH)/warehouse $(BIN)/python -m loader examples || [ $$? -eq 1 ]
	CHDB_PATH=$(SCRATCH)/warehouse $(BIN)/python -m loader prices
	CHDB_PATH=$(SCRATCH)/warehouse $(BIN)/python -m loader billing examples/subscriptions.csv
	CHDB_PATH=$(SCRATCH)/warehouse $(BIN)/python -m loader bills examples/bills/*.json examples/bills/*.csv
	CHDB_PATH=$(SCRATCH)/warehouse $(BIN)/dbt build

test-adapter: setup ## the adapter's own tests
	$(BIN)/python -m pytest -o pythonpath=adapter/tests adapter/tests

# Three workers on two cores: much of a test is waiting for processes to start and end.
test-python: setup ## the loader's tests, kills and faults
	$(BIN)/python -m pytest -n 3 --dist worksteal tests

lint: setup ## ruff, mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lint-sql: setup ## sqlfluff, four minutes
	$(BIN)/sqlfluff lint --disable-progress-bar --processes 2 models tests/singular tests/generic

test-long: lint-sql ## the tests that take minutes each
	$(BIN)/python -m pytest tests -m long

fuzz: setup ## a million records, 100,000 hostile bodies, 1,020 histories; FUZZ_SEED repeats a run
	FUZZ_STORE=1 FUZZ_RECORDS=1000000 FUZZ_BODIES=100000 FUZZ_HISTORIES=1000 FUZZ_BUILT=20 $(BIN)/python -m pytest tests/fuzz -s -m "long or not long"

soak: setup ## ten minutes of everything at once under kills (SOAK="--kills 1000 --seed 42")
	$(BIN)/python -m tests.soak $(or $(SOAK),--minutes 10)

sweep: setup ## SIGKILL behind every commit call of loader and dbt (needs strace)
	$(BIN)/python -m tests.soak.sweep --what loader
	$(BIN)/python -m tests.soak.sweep --what dbt

test-server: setup ## the tests against the server that CLICKHOUSE_ENDPOINT names (see compose.yml)
	@test -n "$$CLICKHOUSE_ENDPOINT" || { echo "set CLICKHOUSE_ENDPOINT; compose.yml starts a server" >&2; exit 2; }
	$(BIN)/python -m pytest tests --ignore tests/support

test-letta: setup ## the drop-in against the server package itself, in an environment of its own
	$(BIN)/python tests/letta/run.py

bench: setup ## the benchmarks, as ratios, into benchmarks/RESULTS.md
	$(BIN)/python -m benchmarks

docs: setup ## dbt's documentation site, into target/
	$(BIN)/dbt docs generate

examples: ## write the example traces again (seeded: the same bytes)
	$(BIN)/python examples/generate.py

lock: ## compile requirements.in into requirements.lock (needs uv)
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header requirements.in -o requirements.lock

clean: ## what can be made again; never the warehouse
	rm -rf target logs .pytest_cache .ruff_cache .mypy_cache .hypothesis
