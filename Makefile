# make quickstart · make test · make lint. Each makes the environment first, if it is not there yet.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
.DEFAULT_GOAL := help

help:
	@echo "make quickstart   install, sweep four methods over ten miniature benchmarks, print the leaderboard"
	@echo "make test         install, run all tests"
	@echo "make lint         install, run ruff, mypy and the import contract"
	@echo "make figure       install, draw the picture of the README again"

install: $(VENV)/installed
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info[:2] >= (3, 11), "Python 3.11 or newer is needed: make PYTHON=..."'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[dev]'
	@touch $@

quickstart: install
	$(BIN)/python run_matrix.py run configs/quickstart.yaml
	$(BIN)/python run_matrix.py table runs/quickstart --format markdown --picture runs/quickstart/leaderboard.png > runs/quickstart/leaderboard.md
	@echo "picture: runs/quickstart/leaderboard.png"

figure: install
	$(BIN)/python scripts/draw_kept_tokens.py --out docs/kept_tokens.png

test: install
	$(BIN)/python -m pytest

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: help install quickstart figure test lint
