# Every target does its own set-up and says what it does. `make help` lists them.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= out
IMAGES ?= 64
# Wheels of torch other than PyPI's, which on Linux are those for CUDA: cpu, cu126, ...
TORCH ?=
# Two processes, each with a Ray cluster of its own, take one file after the other: most tests with Ray wait. Unit tests
# have a process a core, where more threads of torch would only wait for each other. Slow tests measure time: one by one
SIDE_BY_SIDE := -n 2 --dist loadfile --no-loadscope-reorder
# Compiled modules are kept, whatever the environment says: without them each process of Ray starts twice as slowly
unexport PYTHONDONTWRITEBYTECODE
UV := $(shell command -v uv)
ifdef UV
MAKE_VENV := $(UV) venv -q --seed --allow-existing --python $(PYTHON)
INSTALL := $(UV) pip install -q --python $(BIN)/python -c constraints.txt $(if $(TORCH),--torch-backend $(TORCH))
else
MAKE_VENV := $(PYTHON) -m venv
# Python compiles what it imports; to compile all of torch and Ray takes most of a minute
INSTALL := $(BIN)/python -m pip --disable-pip-version-check -qq install --no-compile -c constraints.txt \
  $(if $(TORCH),--extra-index-url https://download.pytorch.org/whl/$(TORCH))
endif

.DEFAULT_GOAL := help

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "make %-12s %s\n", $$1, $$2}'

generate: $(VENV)/.run ## install into .venv and synthesise 64 labelled images into out/
	@echo "==> synthesising $(IMAGES) images into $(OUT)/: a drafter and a refiner, each on its own simulated GPU"
	$(BIN)/tandem generate --classes all --images $(IMAGES) --batch 8 --shard-size 8 \
	  --placement split --drafters 1 --refiners 1 --out $(OUT)
	@echo "==> look at $(OUT)/contact_sheet.png and $(OUT)/README.md"
	@echo "==> to have tandem on the PATH of this shell: source $(BIN)/activate"

test: $(VENV)/.test ## install into .venv and run the tests, those of minutes apart
	@echo "==> running the tests"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n 2 tests/unit
	TRITON_INTERPRET=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" tests/kernels
	$(BIN)/python -m pytest -m "not slow" $(SIDE_BY_SIDE) tests/e2e tests/integration

test-slow: $(VENV)/.test ## the tests of minutes: lost nodes, storage that fails, thousands of shards
	@echo "==> running the slow tests"
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.dev ## ruff: lint and format; hadolint: the image
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/hadolint cluster/Dockerfile

types: $(VENV)/.dev ## mypy
	$(BIN)/mypy

docs: $(VENV)/.dev ## the documents and the reference of library and commands, into build/docs
	@echo "==> building the documents; warnings are errors"
	@$(BIN)/python -m sphinx -q -W --keep-going -b html -c docs -d build/doctrees . build/docs
	@echo "==> look at build/docs/index.html"

example: $(VENV)/.run ## render the example of cluster/ anew
	@echo "==> rendering cluster/example.yaml"
	@$(BIN)/tandem cluster render --spec cluster/example.yaml --out build/example --overwrite
	@cp build/example/raycluster.yaml build/example/rayjob.yaml build/example/rayservice.yaml cluster/kuberay/
	@cp build/example/launcher.yaml cluster/

release: $(VENV)/.run ## VERSION=0.2.0: write a new version into the project
	@$(BIN)/python .ci/release.py "$(VERSION)"
	@$(MAKE) --no-print-directory example

lock: ## write constraints.txt anew from the newest versions that the ranges allow
	@echo "==> resolving in a fresh environment"
	$(PYTHON) .ci/lock.py

clean: ## remove the environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build dist

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"expected Python 3.11 or newer, got {v[0]}.{v[1]}: set PYTHON=")'
	@echo "==> making a virtual environment in $(VENV)"
	@$(MAKE_VENV) $(VENV)
	@touch $@

$(VENV)/.run: $(VENV)/.made pyproject.toml constraints.txt
	@echo "==> installing Tandem and what it needs (torch and Ray: some minutes the first time)"
	@$(INSTALL) -e .
	@touch $@

$(VENV)/.test: $(VENV)/.run
	@echo "==> installing what the tests need"
	@$(INSTALL) -e '.[test]'
	@touch $@

$(VENV)/.dev: $(VENV)/.test
	@echo "==> installing ruff, mypy, hadolint and sphinx"
	@$(INSTALL) -e '.[test,dev]'
	@touch $@

.PHONY: help generate test test-slow lint types docs example release lock clean
