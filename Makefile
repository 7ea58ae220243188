PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# What `make bench` runs. Each prints a table and a line of JSON; `SIZE=full` takes hours
# (`make bench-throughput SIZE=medium` one, with all cells).
BENCHES := startup plan store orchestration throughput limit scaling memory features
SIZE ?= small

.PHONY: demo test faults check format bench $(BENCHES:%=bench-%) bench-early-stopping
.PHONY: bench-recipes bench-search clean

demo: $(STAMP)
	$(BIN)/kdsweep launch examples/quickstart.yaml

test: $(STAMP)
	$(BIN)/python -m pytest -q -n auto --dist worksteal

# Every fault, and all that `make test` leaves out; N processes are killed at random moments.
N ?= 6
faults: $(STAMP)
	KILLS=$(N) $(BIN)/python -m pytest -q -m "fault or slow"

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint --failure-threshold warning docker/Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker/compose.yaml

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(BENCHES:%=bench-%)

$(BENCHES:%=bench-%): bench-%: $(STAMP)
	$(BIN)/python benchmarks/$*.py $(SIZE)

# On a completed sweep: `make demo` makes the one that stands here.
STORE ?= runs/quickstart
bench-early-stopping: $(STAMP)
	$(BIN)/python benchmarks/early_stopping.py $(STORE)

bench-recipes: $(STAMP)
	$(BIN)/python benchmarks/recipes.py

bench-search: $(STAMP)
	$(BIN)/python benchmarks/search.py

clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,dev]'
	touch $@
