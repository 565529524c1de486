# One command a job; every job makes its own virtual environment from constraints.txt when there is none.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: demo test check bench format stubs clean
demo: $(READY)            ## train, distil, launch eight devices, kill them one by one, report
	$(BIN)/nonn demo

test: $(READY)            ## all tests; fails below 85 % of lines covered
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --cov --cov-report=term

check: $(READY)           ## format, lint, types, import contract, stub drift
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/make_stubs.py --check

bench: $(READY)           ## measure; writes benchmarks/results/bench.json
	$(BIN)/python benchmarks/bench.py

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

stubs: $(READY)           ## regenerate nonn/rpc/v1 from proto/
	$(BIN)/python scripts/make_stubs.py

clean:
	rm -rf $(VENV) build dist runs .mypy_cache .pytest_cache .ruff_cache

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@
