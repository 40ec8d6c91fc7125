# The README's two commands are `make study` and `make test`; each sets up what it needs in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STUDY ?=
KILLS ?= 100
BACKUP ?=
RUNS ?= 20
# Of tests, side by side: most wait for processes of theirs, and one worker leaves a core of two idle.
WORKERS ?= 2

# Set in many images, it has each of the hundred processes of a suite compile the source anew.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help study ui test check lint types imports browser long service service-quick chaos chaos-quick deadline deadline-quick bench bench-quick audit secrets up down backup restore clean

help:  ## Show what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(VENV)/.run.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert (3, 11) <= sys.version_info[:2] <= (3, 13), "overnight needs Python 3.11 to 3.13; name one: make PYTHON=python3.12"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/pip install --disable-pip-version-check --progress-bar off --constraint constraints.txt --editable .
	touch $@

$(VENV)/.dev.installed: $(VENV)/.run.installed
	$(BIN)/pip install --disable-pip-version-check --progress-bar off --constraint constraints.txt --editable '.[dev]'
	touch $@

$(VENV)/.bench.installed: $(VENV)/.run.installed
	$(BIN)/pip install --disable-pip-version-check --progress-bar off --constraint constraints.txt --editable '.[bench]'
	touch $@

study: $(VENV)/.run.installed  ## Tune a network on handwritten digits; STUDY='study.trials=50' for overrides
	$(BIN)/overnight tune $(STUDY)

ui: $(VENV)/.run.installed  ## Open MLflow's UI on what was tuned
	$(BIN)/overnight ui

test: $(VENV)/.dev.installed  ## Run the everyday tests; long, chaos and deadline have targets of their own
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

browser: $(VENV)/.dev.installed  ## Run the browser tests alone
	$(BIN)/python -m pytest -m browser

long: $(VENV)/.dev.installed  ## Run the tests that take whole studies in processes of their own
	$(BIN)/python -m pytest -m long

service: $(VENV)/.dev.installed  ## Run the tests of many supervisors on real servers
	$(BIN)/python -m pytest -m service

service-quick: $(VENV)/.dev.installed  ## The ones of a group that loses a member or its ledger, and of refused studies
	$(BIN)/python -m pytest -m service tests/service/test_supervisor_group.py -k "killed or cut_off or refuse or (away and ledger)" --away 1,1,1

chaos: $(VENV)/.dev.installed  ## Kill, stop and starve real studies, at length; KILLS=100
	$(BIN)/python -m pytest -m chaos tests/chaos --kills=$(KILLS)

chaos-quick: $(VENV)/.dev.installed  ## The same in a few minutes
	$(BIN)/python -m pytest -m chaos tests/chaos --kills=6

deadline: $(VENV)/.dev.installed  ## Tune studies that have three minutes, one after another; RUNS=20
	$(BIN)/python -m pytest -m deadline tests/chaos --runs=$(RUNS) --seconds=180

deadline-quick: $(VENV)/.dev.installed  ## The same once, with one minute
	$(BIN)/python -m pytest -m deadline tests/chaos --runs=1 --seconds=60

check: lint types imports test  ## What CI runs: lint, types, import rules, tests

lint: $(VENV)/.dev.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev.installed
	$(BIN)/mypy

imports: $(VENV)/.dev.installed
	$(BIN)/lint-imports

bench: $(VENV)/.bench.installed  ## Measure against what people use, on a quiet machine; writes benchmarks/RESULTS.md
	$(BIN)/python -m benchmarks

bench-quick: $(VENV)/.bench.installed  ## The same, small: that every side does its work; its figures say little
	$(BIN)/python -m benchmarks --quick

audit: $(VENV)/.dev.installed  ## Ask which of the pinned versions have known holes; needs the network
	$(BIN)/pip install --disable-pip-version-check --quiet --constraint constraints.txt 'pip-audit>=2.7,<3'
	$(BIN)/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict

secrets:  ## Write what the service asks for, .env and secrets/; never overwrites
	deploy/secrets.sh

up:  ## Start the service, or bring it up to date; docs/service.md
	docker compose up --build --detach

down:  ## Stop the service; studies stay
	docker compose down

backup:  ## Write the service's databases and artifacts to backups/TIME
	deploy/backup.sh

restore:  ## Bring a backup into an empty service; BACKUP=backups/TIME
	deploy/restore.sh '$(BACKUP)'

clean:  ## Remove the environment; studies stay
	rm -rf $(VENV)
