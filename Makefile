# Everything runs in .venv, which the first command makes. PYTHON is any Python from 3.11 on.
PYTHON ?= python3
# What test-newest runs on: a Python whose newest JAX is newer than the one that Python 3.11 gets.
NEWEST_PYTHON ?= $(shell .ci/find-python 3.13)
BIN := .venv/bin
DEMO_EPOCHS ?= 16
# OpenBLAS's threads spin while they wait: on a busy machine they make eigenvalue problems crawl, alone they gain little.
export OPENBLAS_NUM_THREADS ?= 1
# Most of a fast test's time goes into compiling: a refresh of three layers compiles in 0.12 s of processor time, where XLA's
# defaults take 0.7 s. The slow tests compile as users do. The newest XLA has no option for its older emitters.
FAST_XLA := $(XLA_FLAGS) --xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1
COMPILE_FAST_NEWEST := XLA_FLAGS="$(FAST_XLA)"
COMPILE_FAST := XLA_FLAGS="$(FAST_XLA) --xla_cpu_use_fusion_emitters=false"
DEMO := --dataset digits --model resnet18 --width 0.125 --epochs $(DEMO_EPOCHS)

.PHONY: demo test test-slow test-lowest test-newest test-x64 bench docs clean

# Trains a small ResNet-18 on handwritten digits with and without TempBalance.
demo: .venv/installed-examples
	rm -rf runs/demo
	$(BIN)/python -m examples.paper vision train $(DEMO) --method cal --out runs/demo/cal
	$(BIN)/python -m examples.paper vision train $(DEMO) --method tb --out runs/demo/tb
	$(BIN)/python -m examples.paper vision compare runs/demo/cal runs/demo/tb

test: .venv/installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	$(COMPILE_FAST) $(BIN)/python -m pytest -n 2 -m "not slow"

test-slow: .venv/installed-test
	$(BIN)/python -m pytest -n 2 -m slow

# All fast tests on the oldest versions that pyproject.toml admits, without warnings of deprecations and checks of annotations.
test-lowest: .venv-lowest/installed
	$(COMPILE_FAST) .venv-lowest/bin/python -m pytest -n 2 -m "not slow" -o filterwarnings=default -o addopts="--doctest-modules --dist=loadfile"

# Types and all fast tests on the newest versions that any Python gets: what `make test` is where there is no older one.
test-newest: .venv-newest/installed
	.venv-newest/bin/basedpyright --pythonpath .venv-newest/bin/python
	$(COMPILE_FAST_NEWEST) .venv-newest/bin/python -m pytest -n 2 -m "not slow"

# The library's own tests with float64 admitted; examples in docstrings print what they do without.
test-x64: .venv/installed-test
	JAX_ENABLE_X64=1 $(COMPILE_FAST) $(BIN)/python -m pytest -n 2 -m "not slow" tests --ignore=tests/examples

# Every benchmark that suits this machine's device, with the threads that users get; results go to benchmarks/results/.
bench: .venv/installed-bench
	env -u OPENBLAS_NUM_THREADS $(BIN)/python -m benchmarks.run

docs: .venv/installed-docs
	$(BIN)/python -m sphinx --fail-on-warning --builder html docs docs/_build/html

.venv/installed-%: pyproject.toml | .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[$*]"
	touch $@

.venv:
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and f'Python 3.11 or later is needed; this is {sys.version.split()[0]}. Try: make PYTHON=python3.12 ...')"
	$(PYTHON) -m venv .venv

.venv-lowest/installed: pyproject.toml constraints-lowest.txt
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --upgrade pip
	.venv-lowest/bin/python -m pip install --quiet --editable ".[test]" --constraint constraints-lowest.txt
	touch $@

.venv-newest/installed: pyproject.toml
	$(or $(NEWEST_PYTHON),$(error no Python 3.13 is found; name one: make test-newest NEWEST_PYTHON=/path/to/python3.13)) -m venv .venv-newest
	.venv-newest/bin/python -m pip install --quiet --upgrade pip
	.venv-newest/bin/python -m pip install --quiet --upgrade --editable ".[test]"
	touch $@

clean:
	rm -rf .venv .venv-lowest .venv-newest runs
