# `make demo` and `make test` are all a new user needs; both install into .venv first when it is missing or out of date.

PYTHON ?= python3
BENCH_SECONDS ?= 3
BIN := .venv/bin

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test check quick lint types unit bench test-board clean

help:  ## show this list
	@echo "make TARGET, where TARGET is one of"
	@sed -n 's/^\([a-z-]*\):[^#]*## /  \1\t/p' Makefile | expand -t 14

demo: .venv/.installed  ## train, export, prove and measure on the built-in images; writes a report (4 to 9 minutes)
	$(BIN)/alexnet-edge demo

# What is read last is the tests' own summary, so the benchmarks come before them, and short: they show that they run.
test: BENCH_SECONDS := 0.5
test: lint types bench unit  ## everything continuous integration runs, but for test-board

check: lint types unit  ## what to run before a commit

quick: lint types  ## what a change must pass while you work on it: one to two minutes on two cores
	$(BIN)/python -m pytest --quick -n 2 --dist loadfile

lint: .venv/.installed  ## ruff: lint and formatting; import-linter: the order of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@rm -rf build/imports && mkdir -p build/imports && cp -RL alexnet_edge build/imports/  # it does not follow links
	cd build/imports && ../../$(BIN)/lint-imports --config ../../pyproject.toml --no-cache

types: .venv/.installed  ## mypy --strict
	$(BIN)/mypy

unit: .venv/.installed  ## the tests, in two processes
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

bench: .venv/.installed  ## the benchmarks, as pytest-benchmark tables (BENCH_SECONDS=3 per case)
	$(BIN)/python -m pytest bench --benchmark-only --bench-seconds $(BENCH_SECONDS)

test-board: .venv/.installed  ## a deploy to an emulated aarch64 board, apart from the tests: root, 4 to 8 minutes
	@$(BIN)/python tests/support/emulated_board.py
	$(BIN)/python -m pytest --board -s tests/deploy/test_board.py

clean:  ## remove the environment, builds and caches; keeps runs/, artifacts/ and reports/
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks
	find alexnet_edge export bench tests -name __pycache__ -prune -exec rm -rf {} +

# The stamp is made last, so that an installation cut short is taken up again.
.venv/.installed: pyproject.toml constraints.txt
	@command -v "$(PYTHON)" >/dev/null || { echo "$(PYTHON) was not found; install Python 3.10 or newer, or: make PYTHON=/path/to/python3 ..." >&2; exit 2; }
	@"$(PYTHON)" -c 'import sys; sys.version_info >= (3, 10) or sys.exit("Python 3.10 or newer is needed, %s is %s; try: make PYTHON=python3.11 ..." % (sys.executable, sys.version.split()[0]))'
	@echo "Installing into .venv: about 3 GB to download and 6 GB on disk, mostly PyTorch; 2 to 3 minutes on a fast line. Only once."
	"$(PYTHON)" -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade -c constraints.txt pip
	$(BIN)/python -m pip install -c constraints.txt --build-constraint constraints.txt -e '.[all]' --group dev
	@touch $@
