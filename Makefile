# Each target is the only command to type on a fresh machine: it makes .venv and installs what it needs first.
#
#   make demo    train the article's three networks for an epoch each, into runs/
#   make test    the tests
#   make bench   the benchmarks
#   make lint    ruff and mypy
#   make setup   everything for development, and nothing run
#   make clean   remove .venv, caches and build products

PYTHON ?= python3
PYTEST_ARGUMENTS ?= -n 2
DEMO_ARGUMENTS ?=
BENCH_ARGUMENTS ?=

# The tests run and compile the GPU kernels with one version of Triton, and with CUDA's compiler and headers. These come
# by themselves and are no constraints, because torch's wheels with CUDA demand other ones, and pip finds no set that
# satisfies both.
GPU_COMPILERS := $(patsubst %,"%; platform_system == 'Linux'",triton==3.9.0 nvidia-cuda-nvrtc==13.0.88 \
	nvidia-cuda-runtime==13.0.96 nvidia-cuda-crt==13.0.88 nvidia-cuda-cccl==13.0.85)

VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test bench lint setup clean

# The Transformer is fifty times the CNN's work: it gets a part of its samples.
demo: $(VENV)/installed-plot
	$(BIN)/python -m nnlib train cnn --subset --epochs 1 $(DEMO_ARGUMENTS)
	$(BIN)/python -m nnlib train rnn --epochs 1 $(DEMO_ARGUMENTS)
	$(BIN)/python -m nnlib train transformer --epochs 1 --limit 2000 $(DEMO_ARGUMENTS)

# Threads that wait must not spin: two test processes on two cores would take several times as long.
test: export OMP_WAIT_POLICY ?= passive
test: $(VENV)/installed-test
	$(BIN)/python -m pytest $(PYTEST_ARGUMENTS)

bench: $(VENV)/installed-bench
	$(BIN)/python -m bench $(BENCH_ARGUMENTS)

lint: $(VENV)/installed-lint
	$(BIN)/ruff check .
	$(BIN)/mypy kernels nnlib bench

setup: $(VENV)/installed-lint $(VENV)/installed-bench

# One stamp for each set of extras of pyproject.toml, made anew when what says the versions changes.
$(VENV)/installed-%: pyproject.toml constraints.txt Makefile | $(BIN)/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[$*]"
	$(if $(filter test lint,$*),$(BIN)/python -m pip install --quiet --no-deps $(GPU_COMPILERS))
	touch $@

.PRECIOUS: $(VENV)/installed-%

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks
	find kernels nnlib bench tests tools -name __pycache__ -prune -exec rm -rf {} +
