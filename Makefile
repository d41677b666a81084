# Two commands do everything on a fresh machine with Python >= 3.10, make and a C compiler:
#   make quickstart   install, then shard, pretrain, interrupt, resume, fine-tune, evaluate, export
#   make test         install what tests need, then lint, types and every test
PYTHON ?= python3
VENV   := .venv
CONSTRAINTS := constraints.txt
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
# One more than there are cores: a third of its time a worker waits for programs that its tests start.
WORKERS := --numprocesses $(shell expr $$(nproc) + 1) --maxprocesses 8 --dist loadfile
# Tests that start ranks of their own wait a good deal, for time-outs and for processes to start.
PAIR := --numprocesses 2 --dist loadfile
export DS_BUILD_OPS = 0
# Compiled tests are kept: to rewrite their assertions takes longer than to collect them.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help quickstart test campaigns slurm-scenarios test-unit test-lowest pins lint types install clean system-packages
help:
	@sed -n 's/^#   //p' Makefile
	@echo "test-unit         the tests that take seconds"
	@echo "test-lowest       the same with the oldest libraries that pyproject.toml allows, in an environment of its own"
	@echo "pins              constraints.txt anew: exact versions for every Python, none younger than two weeks"
	@echo "campaigns         kills, crash states, every SLURM scenario, the quickstart as a test"
	@echo "slurm-scenarios   every SLURM scenario, with the table of benchmarks/slurm.md"
	@echo "lint, types       ruff; mypy"

quickstart: $(VENV)/.quickstart
	$(BIN)/coatnet quickstart

# What starts ranks and servers of its own runs two at a time, SLURM's scenarios three, since they mostly wait;
# the rest by WORKERS.
test: system-packages $(VENV)/.test lint types
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/unit tests/golden $(WORKERS)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/integration tests/gpu --ignore tests/integration/slurm $(PAIR)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/integration/slurm --numprocesses 3 --maxschedchunk 1

test-unit: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/unit tests/golden $(WORKERS) -m "not slow and not campaign"

LOWEST := build/lowest
test-lowest: $(VENV)/.test
	@mkdir -p $(LOWEST)
	$(BIN)/python .ci/lowest.py > $(LOWEST)/constraints.txt
	$(MAKE) test-unit VENV=$(LOWEST)/venv CONSTRAINTS=$(LOWEST)/constraints.txt

pins:
	@mkdir -p build
	$(PYTHON) -m venv build/pins
	build/pins/bin/python -m pip --disable-pip-version-check install --quiet uv==0.13.9
	build/pins/bin/python .ci/pins.py $(UPGRADE)

# Longer than a commit should wait for; the tables lie in benchmarks/.
campaigns: system-packages $(VENV)/.test
	@sh .ci/system-packages gcc-11
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -m campaign
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/slurm_scenarios.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/operators.py --trials 20 --seed 1
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/kills.py --kills 40 --seed 7
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/histories.py --trials 40 --seed 1
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/duels.py --duels 200 --commands 4 --seed 1
	$(BIN)/python benchmarks/crash_states.py --states 20000
	@sh .ci/system-packages user-mode-linux uml-utilities kmod nfs-kernel-server nfs-common xfsprogs btrfs-progs
	$(BIN)/python benchmarks/nfs.py --rounds 3 --training
	for kind in ext4 xfs btrfs; do $(BIN)/python benchmarks/power_cuts.py --cuts 10 --file-system $$kind || exit; done

# Every scenario on a real SLURM, with the table that benchmarks/slurm.md holds.
slurm-scenarios: system-packages $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/slurm_scenarios.py

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test
	$(BIN)/mypy

install: $(VENV)/.quickstart

# Real SLURM, a browser and strace: installed where root may; their tests say why they are skipped elsewhere.
system-packages:
	@sh .ci/system-packages

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# torch first and alone: the pin takes the build that the machine has (CPU or CUDA), and nothing else may move it.
$(VENV)/.torch: $(CONSTRAINTS) | $(VENV)/bin/python
	$(PIP) install --quiet --constraint $(CONSTRAINTS) setuptools wheel numpy torch
	@touch $@

$(VENV)/.quickstart: $(VENV)/.torch pyproject.toml setup.py $(wildcard */*/csrc/*)
	$(PIP) install --quiet --constraint $(CONSTRAINTS) --no-build-isolation --editable '.[quickstart]'
	@touch $@

# timm comes without its dependencies: torchvision has no CPU build everywhere, and the tests stub what is missing.
$(VENV)/.test: $(VENV)/.quickstart
	$(PIP) install --quiet --constraint $(CONSTRAINTS) --no-build-isolation --editable '.[test]'
	$(PIP) install --quiet --constraint $(CONSTRAINTS) --no-deps timm
	@touch $@

clean:
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .hypothesis
