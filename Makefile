# Everything here runs in .venv, which is made on first use and kept in step with the pyproject files.
PYTHON ?= python3
ARGS ?=

PROJECTS := pyproject.toml $(sort $(wildcard plugins/*/pyproject.toml contrib/*/pyproject.toml))
RUN := .venv/.installed-run
DEV := .venv/.installed-dev

.DEFAULT_GOAL := help
.PHONY: help setup serve test test-full test-fidelity test-faults test-image test-attacks lint format typing packages bench docs clean

help:  ## what there is to make
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo '  ARGS="..." goes on to the command; PYTHON=... chooses the interpreter.'

$(RUN): $(PROJECTS) tools/setup.sh tools/uv-env.sh
	@PYTHON='$(PYTHON)' tools/setup.sh run
	@touch $@

$(DEV): $(PROJECTS) tools/setup.sh tools/uv-env.sh
	@PYTHON='$(PYTHON)' tools/setup.sh dev
	@touch $(RUN) $@

setup: $(RUN)  ## make .venv with the core and all plugins

serve: $(RUN)  ## set up, then run the gateway
	@exec .venv/bin/gleitzeit serve $(ARGS)

test: $(DEV)  ## set up, then run the tests
	@.venv/bin/pytest $(ARGS)

test-full: $(DEV)  ## all tests, the slow ones and the packaging check too
	@. tools/uv-env.sh && exec .venv/bin/pytest -m "" $(ARGS)

test-fidelity: $(DEV)  ## recordings, official clients, translation tables
	@.venv/bin/pytest -m fidelity $(ARGS)

test-faults: $(DEV)  ## servers and clients that misbehave, at full size
	@GLEITZEIT_FULL_SIZE=1 .venv/bin/pytest -m faults $(ARGS)

test-image:  ## build the Python image that the Docker tests use, without a registry
	@tools/test-image.sh

test-attacks: $(DEV)  ## code that tries to break out of a container, on a real Docker Engine
	@GLEITZEIT_FULL_SIZE=1 .venv/bin/pytest -m attacks $(ARGS)

# Where an import belongs depends on which other files there are, which ruff's cache does not see.
lint: typing  ## ruff (rules and format) and mypy
	@.venv/bin/ruff check --no-cache .
	@.venv/bin/ruff format --check .

format: $(DEV)  ## format and sort imports in place
	@.venv/bin/ruff check --no-cache --fix --select I .
	@.venv/bin/ruff format .

typing: $(DEV)  ## mypy --strict over all packages
	@.venv/bin/mypy

packages: $(DEV)  ## build, install and import every distribution
	@. tools/uv-env.sh && exec .venv/bin/pytest -m packages tests/test_packaging.py $(ARGS)

bench: $(DEV)  ## the benchmarks
	@.venv/bin/python benchmarks/run.py $(ARGS)

docs: $(DEV)  ## check the examples and links in the documentation
	@.venv/bin/pytest tests/together/test_docs.py $(ARGS)

clean:  ## remove .venv, caches and builds
	rm -rf .venv .tox .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
