# make demo | test | slow | check | docs | dist; each makes .venv first when it is missing or outdated.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: install demo test slow check docs dist
install: $(STAMP)

# the first pip install brings a pip that knows --group; constraints.txt pins it
$(STAMP): pyproject.toml constraints.txt scripts/fetch_runtime.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "fewstep needs Python 3.11 or newer; name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv --clear $(VENV)
	$(PIP) install -c constraints.txt --upgrade pip
	$(PIP) install -c constraints.txt --group dev --group docs -e '.[studio,export,hub,s3,text]'
	$(BIN)/python scripts/fetch_runtime.py
	@touch $@

demo: install
	$(BIN)/fewstep demo

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal

slow: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal --run-slow

check: install
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pre-commit run --all-files

docs: install
	$(BIN)/python -m sphinx -E -W --keep-going -q -b html docs docs/_build/html

dist: install
	$(BIN)/python scripts/fetch_runtime.py
	FEWSTEP_REQUIRE_RUNTIME=1 $(BIN)/python -m build --sdist --wheel
	$(BIN)/python -m twine check --strict dist/*
