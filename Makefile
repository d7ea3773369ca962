# Everything from one command: each target sets up what it needs. `make` alone lists them.
PYTHON  ?= python3
PRESET  ?= quick
ONLY    ?=
WORKERS ?=
BUDGET  ?=
UV      ?= $(shell command -v uv 2>/dev/null)

BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help setup prepare check test test-data test-gpu tour paper book bench bench-full bench-gpu lab clean

help: ## list what there is
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile
	@echo "  with PRESET=smoke|quick|cifar|long|paper, ONLY=fig02,tab01 (paper), ONLY=poe (test), WORKERS=N (paper), BUDGET=SECONDS (bench-gpu), PYTHON=python3.12 (setup)"

# By their content, not their dates: those of a clock that was set back would leave an old environment.
READY := .venv/.ready-$(firstword $(shell cat setup.py settings.ini constraints.txt 2>/dev/null | cksum))

setup: $(READY) ## make .venv with everything in it, with uv where that is installed; does nothing if it is up to date

# uv makes the same environment as pip, faster. `make setup UV=` does without it.
ifeq ($(UV),)
RUN     := $(PYTHON)
VENV    := $(PYTHON) -m venv .venv
INSTALL := $(BIN)/python -m pip install -q
else
RUN     := $(UV) run --quiet --no-project --python $(PYTHON) python
VENV    := $(UV) venv --quiet --seed --allow-existing --python $(PYTHON) .venv
INSTALL := $(UV) pip install --quiet --python $(BIN)/python
endif

$(READY):
	@$(RUN) tools/check_python.py > /dev/null || \
	  { echo "cannot use $(PYTHON); name another Python, 3.10 or newer: make setup PYTHON=python3.12" >&2; exit 1; }
	@test -n "$(UV)" || $(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "$(PYTHON) cannot make virtual environments; install its venv package (Debian, Ubuntu: apt install python3-venv), or uv" >&2; exit 1; }
	$(VENV)
	$(INSTALL) $$($(BIN)/python tools/check_python.py 2>/dev/null) -e '.[dev]'
	@rm -f .venv/.ready-*
	@touch $@

prepare: setup ## before a commit: run the index, clean the notebooks, export the package, make the README
	$(BIN)/nbdev_export
	$(BIN)/jupyter nbconvert --to notebook --execute --inplace --log-level=ERROR nbs/index.ipynb
	$(BIN)/nbdev_clean
	$(BIN)/python tools/readme.py

check: setup ## do notebooks, package and README agree?
	$(BIN)/python tools/check.py

test: export OMP_NUM_THREADS = 1
ifeq ($(ONLY),)
test: setup ## all checks and all tests that need neither a GPU nor unpacked data; ONLY=poe,resume: one chapter, one test file
	$(BIN)/python tools/all_tests.py
else
test: setup
	$(BIN)/python tools/only.py $(ONLY)
endif

test-data: export OMP_NUM_THREADS = 1
test-data: setup ## the tests that need unpacked data as well (data/README.md says which)
	$(BIN)/python tools/chapters.py slow data

test-gpu: export OMP_NUM_THREADS = 1
test-gpu: setup ## the tests that need an NVIDIA GPU as well (without nbdev: python tools/gpu_cells.py)
	$(BIN)/nbdev_test --flags "slow gpu" --n_workers 1

tour: setup ## the whole method on digits in 1 to 3 minutes, as a page for your browser: build/tour.html
	@echo "the tour runs: 1 to 3 minutes on two cores"
	$(BIN)/jupyter nbconvert --to html --execute --log-level=ERROR --output-dir build --output tour nbs/00_tour.ipynb
	@echo "the tour is in build/tour.html: open it in your browser"

paper: setup ## every figure and table, into figures/PRESET
	$(BIN)/trustdd paper --preset $(PRESET) $(if $(ONLY),--only $(ONLY)) $(if $(WORKERS),--workers $(WORKERS))

book: .venv/.book ## the book, a site that opens from the disk: build/book/html/index.html
	$(BIN)/python tools/book.py

.venv/.book: $(READY)
	$(INSTALL) $$($(BIN)/python tools/check_python.py 2>/dev/null) -e '.[book]'
	@touch $@

bench: setup ## time the hot paths against plain versions, and memory, into benchmarks/latest.json
	$(BIN)/python benchmarks/bench.py

bench-full: setup ## memory and time of trajectory matching up to 80 steps, into benchmarks/full.json
	$(BIN)/python benchmarks/bench.py --full

bench-gpu: setup ## does an NVIDIA GPU compute what the CPU does, and how fast is it? into benchmarks/gpu.json
	$(BIN)/python benchmarks/bench.py --gpu $(if $(BUDGET),--budget $(BUDGET))

lab: setup ## open the notebooks, the tour first
	$(BIN)/jupyter lab --notebook-dir=. --LabApp.default_url=/lab/tree/nbs/00_tour.ipynb

clean: ## remove what can be made again at once; .venv, data, runs and figures stay
	cd "$(dir $(firstword $(MAKEFILE_LIST)))" && test -f trustdd/core/storage.py && rm -rf build dist _docs _proc .pytest_cache figures/smoke && \
	find nbs tests tools trustdd benchmarks \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +
