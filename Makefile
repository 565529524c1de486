# One command per job; a job creates its virtual environment from constraints.txt if it is missing.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
DOCS   := .venv-docs
export PIP_DISABLE_PIP_VERSION_CHECK = 1

# Tests that compute with floats. `make test-portable` runs them like on two other machines: kernels of processors without
# AVX-512 and without AVX in OpenBLAS, NumPy, torch, oneDNN and MKL, two threads, and another home, locale, time zone,
# proxy, colours and file permissions. Threads wait without spinning, so that two runs share two cores.
PORTABLE := aggregator base_install bias bundle calibration drift examples export features filters fusion grouped heads \
  learned_heads node objectives_formulas partition partition_methods policy_waiting report_sections sim_enumerate sim_laws \
  solver students subsets teacher trainer
haswell := OPENBLAS_CORETYPE=Haswell NPY_DISABLE_CPU_FEATURES='X86_V4 AVX512_ICL AVX512_SPR' \
  ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2
prescott := OPENBLAS_CORETYPE=Prescott NPY_DISABLE_CPU_FEATURES='X86_V3 X86_V4 AVX512_ICL AVX512_SPR' \
  ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_CBWR=COMPATIBLE
ELSEWHERE := OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive HOME=/dev/null LC_ALL=C http_proxy=http://192.0.2.1:9 \
  TZ=Pacific/Chatham FORCE_COLOR=1 PYTHONDONTWRITEBYTECODE=1

.PHONY: demo demo-sensing test test-portable test-haswell test-prescott check bench bench-ray conformance soak arm pi mcu dist docs format \
  stubs clean
demo: $(READY)            ## train, distil, launch eight devices, kill them one by one, report
	$(BIN)/nonn demo

demo-sensing: $(READY)    ## five nodes measure themselves, fail one after another, and rest by an accuracy goal
	$(BIN)/python examples/sensing/demo.py

# Tests wait for a fifth of their time, so three at a time use two cores. Bytecode is kept whatever the shell says: to
# compile tests and modules takes 8 s in each process of pytest, and 0.1 to 0.4 s in each of the hundreds that tests start.
test: export PYTHONDONTWRITEBYTECODE =
test: $(READY)            ## all tests; with COVERAGE=1 half as long again, fails below 85 % of lines and branches
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile -m 'not alone' $(if $(COVERAGE),--cov --cov-report=term)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m alone

test-portable: test-haswell test-prescott ## numerical tests, like on two other machines; -j2: at the same time
test-haswell test-prescott: test-%: $(READY)
	umask 077; $(ELSEWHERE) $($*) $(BIN)/python -m pytest -q -p no:cacheprovider -m 'not alone' $(PORTABLE:%=tests/test_%.py)

check: $(READY)           ## format, lint, types, import contract, stub drift
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/make_stubs.py --check

conformance: $(READY)     ## third-party client and server of the protocol, live
	NONN_CONFORMANCE=required OMP_NUM_THREADS=1 $(BIN)/python -m pytest -v tests/test_conformance*.py

soak: $(READY)            ## faults under load, memory, fuzzing; writes benchmarks/results/soak.json
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.soak

bench: $(READY)           ## measure; writes bench.json, scaling.json and costs.json in benchmarks/results
	$(BIN)/python benchmarks/bench.py
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.costs
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.scaling

bench-ray: $(READY)       ## serving compared with Ray Serve too; 600 MB in a separate environment
	test -x .venv-ray-serve/bin/python || $(PYTHON) -m venv .venv-ray-serve
	.venv-ray-serve/bin/python -m pip install --quiet -r benchmarks/ray-serve-requirements.txt
	OMP_NUM_THREADS=1 $(BIN)/nonn bench serve --ray .venv-ray-serve/bin/python

arm: $(READY)             ## an emulated 64-bit Arm device: features and a live cluster; root, QEMU
	$(BIN)/python -m benchmarks.arm

pi: $(READY)              ## the playbook, faults and updates on containers with systemd; root, systemd-nspawn
	$(BIN)/python -m benchmarks.pi

mcu: $(READY)             ## students on emulated microcontrollers; cross-compilers, QEMU
	$(BIN)/python -m benchmarks.mcu

dist: $(READY)            ## wheel and sdist in dist/; a node runs from the wheel in a bare environment
	$(BIN)/python -m scripts.dist

docs: $(DOCS)/.ready      ## the site in build/site: documents, API from docstrings, links checked
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

stubs: $(READY)           ## regenerate nonn/rpc/v1 from proto/
	$(BIN)/python scripts/make_stubs.py

clean:
	rm -rf $(VENV) .venv-base $(DOCS) .venv-ansible .venv-conformance .venv-sim-ray build dist runs .mypy_cache .pytest_cache .ruff_cache

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

$(DOCS)/.ready: pyproject.toml constraints.txt
	test -x $(DOCS)/bin/python || $(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@
