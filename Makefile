PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: setup demo test test-all test-hard test-processors test-versions bench lint docs release clean

setup: $(READY)

$(READY): pyproject.toml lab/pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make setup PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]' --editable './lab[rivals]'
	$(BIN)/commit-tuning --version
	$(BIN)/commit-lab --version
	touch $@

demo: setup  ## the main job: a short comparison on real icons, with a report
	$(BIN)/commit-lab demo --output runs/demo

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -q

test-all: setup  ## every multimodal family of transformers and every pre-training, too
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -q -m "wide or not wide"

test-processors: setup  ## the suite under the arithmetic of other processors, and under two threads
	$(BIN)/python scripts/test_processors.py

test-versions: setup  ## the product's tests with the oldest supported versions and the newest; PIN=torch==2.13.0 for a torch without CUDA
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/python scripts/test_versions.py $(if $(PIN),--pin $(PIN))

test-hard: setup  ## the campaigns of docs/explanation/reliability.md in full: kills, fuzzed inputs, a soak; about an hour
	OMP_NUM_THREADS=1 COMMIT_TUNING_CAMPAIGN=full $(BIN)/python -m pytest -n 2 -q tests/campaigns lab/tests/campaigns

bench: setup  ## what it costs, into docs/explanation/cost.md: twenty-three minutes beside other work; QUICK=1 for a check
	OMP_NUM_THREADS=1 $(BIN)/python lab/benchmarks/overhead.py $(if $(QUICK),--quick)
	$(BIN)/python lab/benchmarks/overhead.py --page $(if $(QUICK),--quick --output runs/overhead-quick/cost.md)

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: setup  ## the documentation as a site, into site/; a broken link ends it
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	$(BIN)/mkdocs build --strict --quiet

release: setup  ## build both distributions into dist/ and try them in a fresh environment; uploads nothing
	$(BIN)/python -m pip install --quiet --disable-pip-version-check build twine
	$(BIN)/python scripts/release.py

clean:
	rm -rf .venv runs .pytest_cache .mypy_cache .ruff_cache .import_linter_cache site
