# Two targets do all the set-up on a fresh machine: `make quickstart` and `make test`.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint infra/constraints.txt

SECONDS ?= 60

.PHONY: fuzz quickstart test lint types imports check parity torture browser ray privacy constraints clean help

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

quickstart: .venv/.installed ## install, and run the whole pipeline once
	$(BIN)/gristmill run quickstart
	@echo "next: . $(BIN)/activate; gristmill generate quickstart; gristmill up"

test: .venv/.installed-test ## the test suite, under 10 minutes on 2 cores
	$(BIN)/python -m pytest -n 2 --dist worksteal

check: lint types imports ## everything that reads code without running it

lint: .venv/.installed-dev ## style and spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

types: .venv/.installed-dev ## types of lmcore
	$(BIN)/pyright lmcore

imports: .venv/.installed-dev ## who imports whom
	$(BIN)/lint-imports

parity: .venv/.installed-test ## every layout against one process: some 10 minutes on 2 cores
	$(BIN)/python -m pytest tests/parity -p no:randomly --timeout 600
	$(BIN)/python -m pytest tests/lmcore tests/tasks tests/flows -m long -p no:randomly --timeout 600 -n 2 --dist worksteal

torture: .venv/.installed-test ## kill, damage and starve what must survive it
	$(BIN)/python -m pytest tests/torture -p no:randomly --timeout 900

fuzz: .venv/.installed-test ## ours against independent implementations on random inputs, for SECONDS=60
	cd tests && ../$(BIN)/python -m fuzz --seconds $(SECONDS)

browser: .venv/.installed-test ## the forms of the Prefect UI in a real Chromium (installs it, as root)
	bash tests/browser/install.sh
	$(PIP) --editable '.[browser]'
	$(BIN)/python -m pytest tests/browser -p no:randomly --timeout 900

ray: .venv/.installed-test ## shards on a Ray cluster of two nodes on this machine
	$(PIP) --editable '.[ray]'
	$(BIN)/python -m pytest tests/ray -p no:randomly --timeout 600

privacy: .venv/.installed-test ## names and numbers masked by Presidio, really installed
	$(PIP) --editable '.[privacy]'
	$(BIN)/python -m pytest tests/privacy -p no:randomly --timeout 300

constraints: .venv/.installed-dev ## rewrite infra/constraints.txt from what is installed
	{ sed -n 1p infra/constraints.txt; $(BIN)/python -m pip freeze --exclude-editable | grep -v '^torch=='; \
	  echo 'torch==2.13.0'; } > infra/constraints.new && mv infra/constraints.new infra/constraints.txt

clean: ## remove the environment; artifacts and runs stay
	rm -rf .venv

.venv/bin/python:
	$(PYTHON) -m venv .venv

# torch first: with it there, no other package pulls another build of it.
.venv/.installed: .venv/bin/python pyproject.toml infra/constraints.txt
	@echo "installing torch, Prefect, MLflow and the rest into .venv: about 2 GB, some minutes"
	$(PIP) torch
	$(PIP) --editable .
	@touch $@

.venv/.installed-test: .venv/.installed
	$(PIP) --editable '.[test]'
	@touch $@

.venv/.installed-dev: .venv/.installed-test
	$(PIP) --editable '.[test,dev]'
	@touch $@
