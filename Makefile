# The two commands of the README are `make study` and `make test`. Each installs what it needs into .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/pip install --disable-pip-version-check --progress-bar off --constraint constraints.txt
STUDY ?=
KILLS ?= 100
BACKUP ?=
RUNS ?= 20
SEED ?= 0
# Test processes that run at the same time. Most tests wait for child processes, so two workers would leave cores idle.
WORKERS ?= 4

# Many container images set this variable. With it, each of the hundred processes of a test run compiles all sources again.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help study ui check test lint types imports docs docs-serve browser fuzz long service service-quick chaos chaos-quick deadline deadline-quick bench bench-quick bench-search audit secrets up down backup restore clean

help:  ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(VENV)/.run.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert (3, 11) <= sys.version_info[:2] <= (3, 13), "overnight needs Python 3.11 to 3.13; name one: make PYTHON=python3.12"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade pip
	$(PIP_INSTALL) --editable .
	touch $@

$(VENV)/.dev.installed: $(VENV)/.run.installed
	$(PIP_INSTALL) --editable '.[dev]'
	touch $@

$(VENV)/.docs.installed: $(VENV)/.run.installed
	$(PIP_INSTALL) --editable '.[docs]'
	touch $@

$(VENV)/.bench.installed: $(VENV)/.run.installed
	$(PIP_INSTALL) --editable '.[bench]'
	touch $@

study: $(VENV)/.run.installed  ## Tune a network on handwritten digits; STUDY='study.trials=50' passes overrides
	$(BIN)/overnight tune $(STUDY)

ui: $(VENV)/.run.installed  ## Open MLflow's UI on your studies
	$(BIN)/overnight ui

check: lint types imports test  ## Run the linter, the type checker, the import contracts and the tests

test: $(VENV)/.dev.installed  ## Run the everyday tests
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

lint: $(VENV)/.dev.installed  ## Check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev.installed  ## Check types
	$(BIN)/mypy
	$(BIN)/mypy --config-file tests/mypy.ini

imports: $(VENV)/.dev.installed  ## Check that imports follow the layers in pyproject.toml
	$(BIN)/lint-imports

docs: $(VENV)/.docs.installed  ## Build the documentation site into site/; every warning and every broken link fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "open site/index.html"

docs-serve: $(VENV)/.docs.installed  ## Serve the documentation site on 127.0.0.1:8000 and rebuild it on every change
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

browser: $(VENV)/.dev.installed  ## Run the browser tests
	$(BIN)/python -m pytest -m browser

fuzz: $(VENV)/.dev.installed  ## Try hostile input at every command, option and key for two minutes; SEED=0
	$(BIN)/python -m pytest -m fuzz tests/fuzz --fuzz-seconds=120 --fuzz-seed=$(SEED)

long: $(VENV)/.dev.installed  ## Run the tests that tune whole studies in separate processes
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m long

service: $(VENV)/.dev.installed  ## Run the tests of shared studies on real servers
	$(BIN)/python -m pytest -m service

service-quick: $(VENV)/.dev.installed  ## Run a subset of them: lost workers, outages, refused studies
	$(BIN)/python -m pytest -m service tests/service/test_supervisor_group.py -k "killed or disconnected or refuse or (outage and not mlflow)" --away 1,1,1

chaos: $(VENV)/.dev.installed  ## Kill, stop and starve real studies; KILLS=100
	$(BIN)/python -m pytest -m chaos tests/chaos --kills=$(KILLS)

chaos-quick: $(VENV)/.dev.installed  ## Run the chaos tests with few kills
	$(BIN)/python -m pytest -m chaos tests/chaos --kills=6

deadline: $(VENV)/.dev.installed  ## Tune studies with a deadline in three minutes; RUNS=20
	$(BIN)/python -m pytest -m deadline tests/chaos --runs=$(RUNS) --seconds=180

deadline-quick: $(VENV)/.dev.installed  ## Tune one study with a deadline in one minute
	$(BIN)/python -m pytest -m deadline tests/chaos --runs=1 --seconds=60

bench: $(VENV)/.bench.installed  ## Run the benchmarks on a quiet machine and write benchmarks/RESULTS.md
	$(BIN)/python -m benchmarks

bench-quick: $(VENV)/.bench.installed  ## Run small benchmarks to check that they work; their figures mean little
	$(BIN)/python -m benchmarks --quick
	$(BIN)/python -m benchmarks.search --quick

bench-search: $(VENV)/.bench.installed  ## Compare searches on tables of learning curves and write benchmarks/SEARCH.md
	$(BIN)/python -m benchmarks.search

audit: $(VENV)/.dev.installed  ## List known vulnerabilities in the pinned versions; needs the network
	$(BIN)/pip install --disable-pip-version-check --quiet --constraint constraints.txt 'pip-audit>=2.7,<3'
	$(BIN)/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict

secrets:  ## Create the secrets of the service, .env and secrets/; existing files stay as they are
	deploy/secrets.sh

up:  ## Start or update the service; see docs/service.md
	docker compose up --build --detach

down:  ## Stop the service; studies are kept
	docker compose down

backup:  ## Back up the databases and artifacts of the service to backups/TIME
	deploy/backup.sh

restore:  ## Restore a backup into an empty service; BACKUP=backups/TIME
	deploy/restore.sh '$(BACKUP)'

clean:  ## Remove the environment and the documentation site; studies are kept
	rm -rf $(VENV) site
