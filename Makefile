# Each target first sets up what it needs in .venv. PYTHON chooses the interpreter (3.10 or newer).
PYTHON ?= python3
BIN := .venv/bin
# Two test processes, for two cores. If one of them dies, the run ends, because after a restart the
# other one may wait forever.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist loadgroup --max-worker-restart 0
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile --constraint constraints.txt

.PHONY: demo test test-all docs format clean

demo: .venv/package ## classify a photo with the weights that come with the package
	$(BIN)/regnet predict docs/photos/chelsea.png --topk 3
	@echo
	$(BIN)/regnet list 'regnet[xy]_*' --max-flops 1G

test: .venv/test ## formatter, linter, spelling, types, import contracts, and the quick tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/codespell README.md CHANGELOG.md CONTRIBUTING.md SECURITY.md docs src scripts benchmarks tests
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(PYTEST)

test-all: test .venv/dev ## the same, then all other tests except those that need a GPU or hours
	$(PYTEST) --slow

docs: .venv/dev ## build the documentation in build/docs
	$(BIN)/sphinx-build -W --keep-going -q docs build/docs
	@echo build/docs/index.html

format: .venv/test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv build dist

.venv/package: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) torch
	$(PIP) --editable .
	touch $@

.venv/test: .venv/package
	$(PIP) --editable '.[test]'
	touch $@

.venv/dev: .venv/test
	$(PIP) --editable '.[dev]'
	touch $@
