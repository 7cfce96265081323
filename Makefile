# make demo    compile a small model, run it, check its answers, build its page (no browser, no GPU)
# make test    install what the tests need and run them all
# make check   formatting, lint, types (Python and JavaScript)
# make bench   measure sizes and cold starts in Chromium
# make clean   remove what these made
#
# VENV=folder takes another virtual environment than .venv; TESTS="tests/null -k serve" fewer tests.

VENV ?= .venv
PYTHON_BIN := $(VENV)/bin/python
JOBS ?= auto
TESTS ?= tests
# A run counts only when each of these gave answers.
EXECUTORS ?= wgpu,wasmtime,chromium-webgpu,chromium-wasm
# The full tier of real models too, built from source where the cache lacks them.
export PYWEBGPU_FULL_MODELS ?= 1

export VENV
.PHONY: demo test check bench clean help
.DEFAULT_GOAL := help

help:
	@sed -n '/^# make/s/^# //p' Makefile

$(VENV)/.demo: pyproject.toml .ci/prepare
	@.ci/prepare venv
	@touch $@

$(VENV)/.dev: pyproject.toml .ci/prepare
	@.ci/prepare venv dev,examples
	@touch $@ $(VENV)/.demo

node_modules/.package-lock.json: package.json package-lock.json
	@.ci/prepare npm
	@touch $@

# Packages that only one set of tests may see: tests/models/timm_families.py says why.
build/timm: $(VENV)/.dev
	@$(PYTHON_BIN) -m tests.models.timm_families install

demo: $(VENV)/.demo
	@$(PYTHON_BIN) examples/demo.py

test: $(VENV)/.dev build/timm
	@.ci/prepare system
	@$(MAKE) --no-print-directory node_modules/.package-lock.json
	PYWEBGPU_REQUIRE_EXECUTORS=$(EXECUTORS) \
		$(PYTHON_BIN) -m pytest -q -n $(JOBS) --dist loadfile $(TESTS)

check: $(VENV)/.dev node_modules/.package-lock.json
	$(PYTHON_BIN) -m ruff format --check .
	$(PYTHON_BIN) -m ruff check .
	$(PYTHON_BIN) -m mypy
	node_modules/.bin/tsc -p tsconfig.json

bench: $(VENV)/.dev node_modules/.package-lock.json
	$(PYTHON_BIN) -m tests.bench.size --json
	$(PYTHON_BIN) -m tests.bench.cold_start --json

clean:
	rm -rf build dist *.egg-info node_modules .mypy_cache .pytest_cache .ruff_cache .hypothesis \
		test-results
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
