# Each target sets up what it needs. make train ARGS="model.latent_dim=8" passes overrides on.
PYTHON ?= python3
ARGS ?=
RUN := .venv/bin/python
# import this checkout, not one that is installed in the environment
export PYTHONPATH := $(CURDIR)/src$(if $(PYTHONPATH),:$(PYTHONPATH))

CHECK_PYTHON = $(PYTHON) -c 'import sys; (3, 11) <= sys.version_info < (3, 14) or sys.exit("Python %d.%d: this project needs Python 3.11 to 3.13; make PYTHON=python3.13 ..." % sys.version_info[:2])'

.DEFAULT_GOAL := help
.PHONY: help install install-locked lock train article test test-engines test-faults test-long bench precision recipes speedrun ablations lint format clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

install: .venv/.installed ## create .venv and install the project with pinned versions

.venv/.installed: pyproject.toml constraints.txt
	@$(CHECK_PYTHON)
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --constraint constraints.txt --upgrade pip
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable . --group dev
	@touch $@

.venv/.extras: .venv/.installed
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[search,submitit,ray,wandb,export]'
	@touch $@

LOCKS := locks/linux-x86_64-cp311
REPORT := $(RUN) -m pip install --quiet --dry-run --ignore-installed --constraint constraints.txt --report -

lock: .venv/.installed ## write the digests of all packages, on Linux x86-64 with Python 3.11
	$(REPORT) setuptools | $(RUN) locks/lock.py > $(LOCKS)-build.txt
	$(REPORT) --editable '.[search,submitit,ray,wandb,export]' --group dev | $(RUN) locks/lock.py > $(LOCKS).txt

install-locked: ## the same as install with all extras, from files of known digests alone
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --require-hashes --only-binary :all: -r $(LOCKS)-build.txt
	$(RUN) -m pip install --quiet --require-hashes --no-build-isolation -r $(LOCKS).txt
	$(RUN) -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch .venv/.installed .venv/.extras

train: .venv/.installed ## train the default CVAE on MNIST (ARGS="key=value ..." changes it)
	$(RUN) src/train.py $(ARGS)

article: .venv/.installed ## train and evaluate autoencoder, VAE and CVAEs, 3 seeds each, and compare; over an hour
	$(RUN) benchmarks/article.py $(ARGS)
	$(RUN) docs/tables.py

PYTEST := $(RUN) -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test: .venv/.installed ## run the tests
	$(PYTEST) -m "not engines and not long" $(ARGS)

test-engines: .venv/.extras ## run those of launchers, search and benchmarks; installs Optuna, submitit and Ray
	$(PYTEST) -m "engines and not long" $(ARGS)

LONG := $(RUN) -m pytest --numprocesses 2 --dist worksteal
COMMIT_NUMBER = $(shell printf '%d' 0x$$(git rev-parse --short=7 HEAD 2>/dev/null || echo 0))

test-faults: .venv/.extras ## inject faults for four minutes, others with each commit
	$(LONG) -m long --minutes 4 --faults-seed $(COMMIT_NUMBER) $(ARGS)

test-long: .venv/.extras ## inject all faults, for half an hour, and write docs/faults.json
	rm -f docs/faults.json
	$(LONG) -m "fault or long" --faults docs/faults.json $(ARGS)
	$(RUN) docs/tables.py

bench: .venv/.installed ## measure the speed beside a bare loop, the usual and a peer; half an hour alone
	$(RUN) -m pip install --quiet --constraint constraints.txt cloudpickle
	$(RUN) -m pip install --quiet --no-deps pythae==0.1.2
	$(RUN) benchmarks/bench.py $(ARGS)
	$(RUN) docs/tables.py

precision: .venv/.installed ## measure what bfloat16 costs in nats, over ten seeds; 10 minutes
	$(RUN) benchmarks/precision.py $(ARGS)
	$(RUN) docs/tables.py

recipes: .venv/.installed ## train and measure the recipes, 3 seeds each; over two hours, or minutes for ARGS=quick
	$(RUN) benchmarks/recipes.py $(ARGS)
	$(RUN) docs/tables.py

speedrun: .venv/.installed ## measure the time to 84 nats, 3 seeds alone on the machine; 10 minutes
	$(RUN) benchmarks/speedrun.py $(ARGS)

ablations: .venv/.installed ## measure what each part of the default recipe is worth, 3 seeds each; hours
	$(RUN) benchmarks/ablations.py $(ARGS)
	$(RUN) docs/tables.py

lint: .venv/.installed ## linter, formatter and type checker
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

format: .venv/.installed ## format the code
	$(RUN) -m ruff format .
	$(RUN) -m ruff check --fix .

clean: ## remove the environment and caches; runs and data stay
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache src/*.egg-info
