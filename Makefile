# Needs Python 3.11 or newer. The first target creates the environment .venv, with uv if it is
# installed, otherwise with pip.

PYTHON ?= python3
BIN := .venv/bin

# The tests start hundreds of processes. Without compiled files each would compile all modules again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-all test-versions proof lint bench docs

demo: .venv/installed
	$(BIN)/python examples/demo.py

# Three processes for two cores: tests also wait.
test: .venv/installed
	$(BIN)/pytest -n 3 --dist worksteal $(ARGS)

# Runs all cases of all tests. `make test` runs a selection of them (see CONTRIBUTING.md).
test-all: .venv/installed
	EXECUTION_CORE_TESTS=whole $(BIN)/pytest -n 3 --dist worksteal $(ARGS)

# Runs a part of the tests with the lowest and the newest versions that pyproject.toml allows.
test-versions: .venv/installed
	$(BIN)/python tools/test_versions.py $(ARGS)

# Chaos runs, batches and trees under kills, their controls, then tests; takes half an hour. ARGS="--seed 7" repeats a seed;
# ARGS=--quick only checks that everything runs, without the tests; ARGS=--write writes the figures
# into docs/reliability.md.
proof: .venv/installed
	$(BIN)/python -m proof $(ARGS)

# Measures all figures of docs/performance.md in about 20 minutes; ARGS=--quick only checks that
# everything runs.
bench: .venv/bench
	$(BIN)/python -m benchmarks $(ARGS)

# Generates the reference of the command line and its pictures.
docs: .venv/installed
	$(BIN)/python tools/cli_reference.py
	$(BIN)/python tools/pictures.py

lint: .venv/installed
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

.venv/bench: EXTRAS = dev,bench
.venv/installed: EXTRAS = dev
.venv/installed .venv/bench: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	@echo "Creating .venv; this takes about a minute ..."
	@if command -v uv >/dev/null; then \
		uv venv --quiet --allow-existing --python $(PYTHON) .venv && \
		uv pip install --quiet --python $(BIN)/python -e '.[$(EXTRAS)]'; \
	else \
		$(PYTHON) -m venv .venv && \
		$(BIN)/pip install --quiet --disable-pip-version-check -e '.[$(EXTRAS)]'; \
	fi
	@touch $@
