# Each target installs what it needs. ARGS passes overrides: make train ARGS="model.latent_dim=8"
PYTHON ?= python3
ARGS ?=
# RUN= on the command line is the run folder of make pretrained; below, RUN is the interpreter
RUN_FOLDER := $(if $(filter command,$(firstword $(origin RUN))),$(RUN),logs/latest)
override RUN := .venv/bin/python
# import this checkout, even if another one is installed in the environment
export PYTHONPATH := $(CURDIR)/src$(if $(PYTHONPATH),:$(PYTHONPATH))

CHECK_PYTHON = $(PYTHON) -c 'import sys; (3, 11) <= sys.version_info < (3, 14) or sys.exit("Python %d.%d: this project needs Python 3.11 to 3.13; make PYTHON=python3.13 ..." % sys.version_info[:2])'

.DEFAULT_GOAL := help
.PHONY: help install install-locked train demo leet doctor test test-fast test-engines test-faults test-next lint format lock clean schemas docs docs-serve

##@ Use
help: ## list the targets
	@echo 'make TARGET [ARGS="key=value ..."] [PYTHON=python3.13]; minutes on two cores'
	@awk -F ':.*## ' '/^##@ / {group = substr($$0, 5); if (!(group in known)) {known[group]; order[++n] = group}} /^[a-z-]+:.*## / {rows[group] = rows[group] sprintf("  %-15s %s\n", $$1, $$2)} END {for (i = 1; i <= n; i++) if (rows[order[i]]) printf "\n%s\n%s", order[i], rows[order[i]]}' $(MAKEFILE_LIST)

install: .venv/.installed ## create .venv with pinned versions; 3 GB to download

.venv/.installed: pyproject.toml constraints.txt
	@$(CHECK_PYTHON)
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --constraint constraints.txt --upgrade pip
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable . --group dev
	@touch $@

.venv/.extras: .venv/.installed
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[search,flows,submitit,ray,wandb,export]' --group browser
	@touch $@

LOCKS := locks/linux-x86_64-cp311
REPORT := $(RUN) -m pip install --quiet --dry-run --ignore-installed --constraint constraints.txt --report -

install-locked: ## create .venv with all extras, by the digests in locks/
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --require-hashes --only-binary :all: -r $(LOCKS)-build.txt
	$(RUN) -m pip install --quiet --require-hashes --no-build-isolation -r $(LOCKS).txt
	$(RUN) -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch .venv/.installed .venv/.extras .venv/.explore

train: .venv/.installed ## train the default CVAE; 5 min (ARGS=experiment=quick: 20 s)
	$(RUN) src/train.py $(ARGS)

.venv/.explore: .venv/.installed
	extra=$$(command -v npm > /dev/null && echo export || echo explore) && \
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable ".[$$extra]"
	@touch $@

demo: .venv/.explore ## draw a digit in the browser, with the pretrained model
	$(RUN) src/explore.py run=pretrained $(ARGS)

leet: .venv/.installed ## browse the W&B files of all runs in logs/ in a terminal
	@links=$$(mktemp -d) && trap 'rm -r "$$links"' EXIT && \
	find logs/ -type d -path 'logs/*/wandb/*run-*' -prune -exec ln -s "$(CURDIR)/{}" "$$links" \; && \
	WANDB_ERROR_REPORTING=false .venv/bin/wandb leet "$$links"

doctor: ## print the facts that a bug report needs
	@$(if $(wildcard $(RUN)),$(RUN),$(PYTHON)) tools/doctor.py

##@ Test

PYTEST := $(RUN) -m pytest --numprocesses 2 --dist loadgroup --no-loadscope-reorder

test: .venv/.installed ## run the tests that need no extras; 5 min
	$(PYTEST) -m "not engines and not long" $(ARGS)

test-fast: .venv/.installed ## test the science only, without whole runs; under a minute
	$(PYTEST) -m "not engines and not long" $(ARGS) tests/science

test-engines: .venv/.extras ## test launchers, search, export, explorer, benchmarks; 6 min
	$(PYTEST) -m "engines and not long" $(ARGS)

LONG := $(RUN) -m pytest --numprocesses 2 --dist worksteal
COMMIT_NUMBER = $(shell printf '%d' 0x$$(git rev-parse --short=7 HEAD 2>/dev/null || echo 0))

test-faults: .venv/.extras ## inject random faults, different for each commit; 3 min
	$(LONG) -m long --minutes 3 --faults-seed $(COMMIT_NUMBER) $(ARGS)

PURELIB := 'import sysconfig; print(sysconfig.get_path("purelib"))'

.venv-next/.installed: .venv/.installed
	rm -rf .venv-next
	$(RUN) -m venv .venv-next
	site="$$(.venv-next/bin/python -c $(PURELIB))" && $(RUN) -c $(PURELIB) > "$$site/base.pth" && \
	printf 'import warnings\nwarnings.filterwarnings("ignore", "$(RAY_WARNING)", module="hydra_plugins")\n' > "$$site/sitecustomize.py"
	.venv-next/bin/python -m pip install --quiet --no-deps --ignore-installed $(NEXT)
	ln -s ../../.venv/bin/wandb .venv-next/bin/wandb
	@touch $@

# --no-deps: pyproject.toml excludes Hydra 1.4 until its release
NEXT := hydra-core==1.4.0rc3 omegaconf==2.4.1rc1
# the Ray launcher, an extra, calls this function, which OmegaConf 2.4 deprecates
RAY_WARNING := register_new_resolver

test-next: .venv-next/.installed ## run make test on release candidates: Hydra 1.4, OmegaConf 2.4
	PYTEST_ADDOPTS="-W ignore:$(RAY_WARNING):UserWarning" \
	$(subst $(RUN),.venv-next/bin/python,$(PYTEST)) -m "not engines and not long" $(ARGS)

##@ Measure

##@ Develop
lint: .venv/.installed ## run linter, formatter and type checker; 1 min
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

format: .venv/.installed ## format the code
	$(RUN) -m ruff format .
	$(RUN) -m ruff check --fix .

lock: .venv/.installed ## pin all packages by digest, for Python 3.11 on Linux x86-64
	$(REPORT) setuptools | $(RUN) locks/lock.py > $(LOCKS)-build.txt
	$(REPORT) --editable '.[search,flows,submitit,ray,wandb,explore]' --group dev --group browser | $(RUN) locks/lock.py > $(LOCKS).txt

clean: ## remove environments and caches, but no runs or data
	rm -rf .venv .venv-next .cache .npm site .pytest_cache .ruff_cache .mypy_cache src/*.egg-info

##@ Docs
schemas: .venv/.installed ## write the schemas for editors and the reference of settings
	$(RUN) docs/schemas.py
	$(RUN) docs/reference.py

.venv/.docs: .venv/.installed
	$(RUN) -m pip install --quiet --constraint constraints.txt --group docs
	@touch $@

ZENSICAL = PYTHONPATH=docs $(RUN) -m zensical

docs: .venv/.docs ## build the site from docs/ into site/; a broken link fails
	$(ZENSICAL) build --strict --clean
	$(RUN) docs/check_site.py

docs-serve: .venv/.docs ## show the site at localhost:8000 while you edit docs/
	$(ZENSICAL) serve

-include benchmarks/targets.mk tools/new.mk tools/pretrained.mk
