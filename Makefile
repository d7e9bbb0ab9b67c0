# `make` on a fresh machine with Python 3.11 or newer: the environment, then a model trained, scored and shown.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
SETUP_LOG := $(VENV)/setup_seconds

.PHONY: quickstart setup test test-slow test-all lint bench docs docs-check ablation lock clean
.DEFAULT_GOAL := quickstart

quickstart: setup
	$(RUN) train.py --config configs/quickstart.py
	$(RUN) eval.py --config configs/quickstart.py --checkpoint runs/quickstart
	$(RUN) predict.py --checkpoint runs/quickstart --image examples/scene.png \
		--classes "striped green ball, striped green cross, blue ring, red box, grass, wood, sand" --out runs/quickstart/predictions

setup: $(VENV)/.ready

# An interrupted set-up leaves .unfinished behind, and the next one starts over.
$(VENV)/.ready: requirements/dev.txt requirements/uv.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("error: Python 3.11 or newer is needed; name one, as in: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	@set -e; started=$$(date +%s); \
	if [ -e $(VENV)/.unfinished ]; then rm -rf $(VENV); fi; \
	mkdir -p $(VENV); touch $(VENV)/.unfinished; \
	$(PYTHON) -m venv $(VENV); \
	$(RUN) -m pip install --quiet --require-hashes -r requirements/uv.txt; \
	export UV_COMPILE_BYTECODE=1; \
	$(VENV)/bin/uv pip install --quiet --python $(RUN) --require-hashes -r requirements/dev.txt; \
	$(VENV)/bin/uv pip install --quiet --python $(RUN) --no-deps --no-build-isolation -e .; \
	echo $$(( $$(date +%s) - started )) > $(SETUP_LOG); \
	rm $(VENV)/.unfinished; touch $@; \
	echo "environment ready in $$(cat $(SETUP_LOG)) s"

# Neighbours stay on one worker, for what they share, until the other has nothing left to do.
TESTS ?=
PYTEST := $(RUN) -m pytest -n 2 --dist worksteal

test: setup
	$(PYTEST) $(TESTS)

test-slow: setup
	$(PYTEST) -m slow

test-all: setup
	$(PYTEST) -m "slow or not slow"

lint: setup
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

bench: setup
	$(RUN) -m benchmarks.windows
	$(RUN) -m benchmarks.head --grids 24 --classes 20 171

# The pages with code are run on the quick start's model, which is trained first where there is none. Links to other
# sites are not followed.
SPHINX := $(RUN) -m sphinx -W --keep-going --doctree-dir build/docs/doctrees

docs: setup
	@ls runs/quickstart/checkpoints > /dev/null 2>&1 || $(MAKE) quickstart
	$(SPHINX) -b html docs build/docs/html
	$(SPHINX) -b linkcheck -D 'linkcheck_ignore=https?://.*' docs build/docs/links
	@echo "open build/docs/html/index.html"

# Every page of it in headless Chromium.
docs-check: docs
	DINOV3SEG_SITE=build/docs/html $(RUN) -m pytest -m slow tests/docs/test_site.py

# The parts of the method, each left out in turn; within an hour, on one core too.
ablation: setup
	$(RUN) -m benchmarks.ablation --quick

# After a change of the dependencies in pyproject.toml.
lock: setup
	$(VENV)/bin/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --no-header \
		--extra dev pyproject.toml -o requirements/dev.txt
	$(VENV)/bin/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --no-header \
		--extra app --extra fonts --extra formats --extra heif --extra tips --constraint requirements/dev.txt \
		pyproject.toml -o requirements/app.txt
	printf 'editables\nhatchling\n' | $(VENV)/bin/uv pip compile --quiet --universal --generate-hashes \
		--python-version 3.11 --no-header --no-annotate --constraint requirements/dev.txt - -o requirements/build.txt
	echo uv | $(VENV)/bin/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --no-header \
		--no-annotate - -o requirements/uv.txt

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
