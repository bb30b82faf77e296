# `make demo` and `make test` work on a machine that has only Python (>= 3.10), git and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
THREADED := tests/metrics/test_intervals.py tests/stream/test_moments.py tests/evaluation/test_real_data.py tests/demo/test_demo.py

.PHONY: demo test check test-slow test-threads test-fuzz test-properties test-transformers4 test-recipes coverage dist versions lint types docs bench \
	bench-all clean
.DELETE_ON_ERROR:

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# The core installation is enough for the demo; the tests take every extra.
$(VENV)/.core: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/.all: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[all,dev]"
	touch $(VENV)/.core $@

demo: $(VENV)/.core
	$(BIN)/python -m clipconformity demo -o demo-output

# Side by side, on one thread each; one more than there are cores, since some wait for processes of their own.
WORKERS := $(shell echo $$(( $$(getconf _NPROCESSORS_ONLN) + 1 )))
test: lint types docs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 4 -m "not slow"

# What CI runs: besides, what takes long, what computes most on as many threads as a user has, a minute of damaged
# inputs, and transformers 4.
check: test test-slow test-threads test-fuzz test-transformers4

test-slow: $(VENV)/.all
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 4 -m slow

test-threads: $(VENV)/.all
	$(BIN)/python -m pytest $(THREADED)

# Another seed or number of cases: make test-fuzz FUZZ=20000 FUZZ_SEED=1
FUZZ ?= 1500
FUZZ_SEED ?= 0
test-fuzz: $(VENV)/.all
	CLIPCONFORMITY_FUZZ=$(FUZZ) CLIPCONFORMITY_FUZZ_SEED=$(FUZZ_SEED) OMP_NUM_THREADS=1 \
		$(BIN)/python -m pytest tests/fuzz

# The property tests on more cases than the few that `make test` always takes, drawn anew each time.
EXAMPLES ?= 200
test-properties: $(VENV)/.all
	CLIPCONFORMITY_EXAMPLES=$(EXAMPLES) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 4 \
		tests/functional/test_properties.py tests/metrics/test_properties.py

# Line coverage of all tests, with what they start in processes of their own; fails below the share in pyproject.toml.
coverage: $(VENV)/.all
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 4 --cov --cov-report=term:skip-covered

# The wheel and the source distribution in dist/, tried in a fresh environment: 5 GB for some minutes.
# make dist DIST_OPTIONS="--environment FOLDER" takes one that is there.
dist: $(VENV)/.all
	$(BIN)/python .ci/dist $(DIST_OPTIONS)

# The newest and the oldest versions that pyproject.toml allows, each in an environment of its own, on one interpreter:
# make versions PYTHON=python3.12
versions:
	.ci/versions $(VENV)-newest --python $(PYTHON)
	.ci/versions $(VENV)-oldest --python python3.10 --oldest

# Transformers 4 beside the environment's 5, for what depends on it.
test-transformers4: $(VENV)/.all
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
		--target $(VENV)/transformers4 "transformers>=4.57,<5" "huggingface_hub<1" "tokenizers<0.23" \
		"sentence-transformers>=5.1,<6"
	PYTHONPATH=$(VENV)/transformers4 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 \
		tests/encoders tests/generators/test_captioning.py tests/examples/test_captioners.py

# The recipes for Ray Data and for Hugging Face datasets, which are large: apart from the environment of the other tests.
test-recipes: $(VENV)/.all
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade --target $(VENV)/recipes \
		"ray[data]>=2.60" "datasets>=5.2"
	PYTHONPATH=$(VENV)/recipes $(BIN)/python -m pytest tests/examples/test_recipes.py

lint: $(VENV)/.all
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	git ls-files -z | xargs -0 $(BIN)/codespell

types: $(VENV)/.all
	$(BIN)/mypy

docs: $(VENV)/.all
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	$(BIN)/python -m sphinx -W --keep-going -q -b doctest -D nb_execution_mode=off docs docs/_build/doctest

# Speed of update and compute, and the peers beside one run with all metrics: a few minutes. The rest takes hours.
bench: $(VENV)/.all
	$(BIN)/python benchmarks/speed.py --repeats 3
	$(BIN)/python benchmarks/speed.py --repeats 3 --kinds state fit --batch 32
	$(BIN)/python benchmarks/from_files.py
	$(BIN)/python benchmarks/peers.py --count 10000 --part 1000

bench-all: bench
	$(BIN)/python benchmarks/growth.py
	$(BIN)/python benchmarks/conformity_speed.py
	$(BIN)/python benchmarks/kl_accuracy.py
	$(BIN)/python benchmarks/kl_coverage.py
	$(BIN)/python benchmarks/encoder_throughput.py

clean:
	rm -rf $(VENV) $(VENV)-newest $(VENV)-oldest docs/_build demo-output dist .coverage
