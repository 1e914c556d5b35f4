# make quickstart · make test · make lint. Each makes the environment first, if it is not there yet.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
# processes that share the tests; each computes on one thread
WORKERS ?= 2
# the oldest and the newest transformers that pyproject.toml allows and that the engine is known to work with
TRANSFORMERS ?= 5.18.0 5.24.0
# tests of everything that touches transformers' internals
ENGINE_TESTS := tests/test_engine.py tests/test_engine_faults.py tests/test_golden_llm.py tests/test_fixed.py \
  tests/test_several_images.py tests/test_families.py tests/test_family_spans.py tests/test_family_vision.py
# tests whose outcome could depend on how this processor rounds a sum
NUMERIC_TESTS := $(ENGINE_TESTS) tests/test_methods_decoder.py tests/test_methods_vision.py tests/test_pruners.py \
  tests/test_heads.py tests/test_queries.py tests/test_clip.py tests/test_original.py
# waiting threads sleep instead of spinning: with spinning, processes that share two cores take several times as long
PYTEST = env HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1 GOMP_SPINCOUNT=0 OMP_WAIT_POLICY=PASSIVE \
  $(BIN)/python -m pytest
SHARED = -n $(WORKERS) --dist loadfile --no-loadscope-reorder
.DEFAULT_GOAL := help

help:
	@echo "make quickstart      install, sweep five methods over ten miniature benchmarks, print the leaderboard"
	@echo "make test            install, run all tests"
	@echo "make test-fast       those that start no processes and take no minutes"
	@echo "make test-versions   the engine on the oldest and the newest transformers ($(TRANSFORMERS))"
	@echo "make test-cpus       the numeric tests as on processors without AVX2"
	@echo "make lint            install, run ruff, mypy and the import contract"
	@echo "make docs            install, build the pages of docs/ as a site in build/site, refusing dead links"
	@echo "make figure          install, draw the picture of the README again"
	@echo "make gallery         install, draw docs/gallery.md and its pictures again"

install: $(VENV)/installed
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert (3, 11) <= sys.version_info[:2] < (3, 14), "Python 3.11, 3.12 or 3.13 is needed: make PYTHON=..."'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[dev]'
	$(BIN)/python -m compileall -q finepruner_lmms
	@touch $@

quickstart: install
	$(BIN)/python run_matrix.py run configs/quickstart.yaml
	$(BIN)/python run_matrix.py table runs/quickstart --format markdown --picture runs/quickstart/leaderboard.png > runs/quickstart/leaderboard.md
	@echo "picture: runs/quickstart/leaderboard.png"

figure: install
	$(BIN)/python scripts/draw_kept_tokens.py --out docs/kept_tokens.png

gallery: install
	$(BIN)/python scripts/draw_gallery.py --out docs

docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

test: install
	$(PYTEST) $(SHARED) --durations=25

test-fast: install
	$(PYTEST) $(SHARED) -m 'not slow and not llava'

# beside the environment, not in it: PYTHONPATH puts one version before the installed one
test-versions: $(TRANSFORMERS:%=test-transformers-%)
test-transformers-%: $(VENV)/transformers-%/installed
	PYTHONPATH=$(VENV)/transformers-$* FINEPRUNER_TEST_TRANSFORMERS=$* $(PYTEST) -n $(WORKERS) $(ENGINE_TESTS)
$(VENV)/transformers-%/installed: $(VENV)/installed
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps --upgrade --target $(@D) transformers==$*
	@touch $@
.PRECIOUS: $(VENV)/transformers-%/installed

test-cpus: install
	ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE ONEDNN_MAX_CPU_ISA=SSE41 $(PYTEST) -n $(WORKERS) -m 'not slow and not llava' $(NUMERIC_TESTS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: help install quickstart figure gallery docs test test-fast test-versions test-cpus lint
